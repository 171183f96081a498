"""A method in a model of one part, on plain arrays: how it acts at each kind of place.

Sizes are distinct, so that no transposition passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

from minipeft.adapted import Adapted, Adapter
from minipeft.arrays import array_of, declared
from minipeft.drawing import Facts
from minipeft.engine import ops
from minipeft.engine.backend import to_device, to_host, xp
from minipeft.engine.tensor import value
from minipeft.engine.weight import widened
from minipeft.method import Method, Site, change_of
from minipeft.model.arch import Arch
from minipeft.model.base import Model
from minipeft.model.batch import Batch
from minipeft.model.blocks import norm
from minipeft.model.cache import Growing
from minipeft.model.generate import carried
from minipeft.model.tokens import Tokens
from minipeft.run import Run

B, T, IN, OUT, WORDS = 3, 4, 14, 10, 11
ARCH = Arch("llama", d=IN, layers=1, heads=4, kv_heads=2, head_dim=5, ff=22, vocab=WORDS, norm="rms", eps=1e-5)
OTHER_ARCH, OTHER_OUT = dataclasses.replace(ARCH, d=12, head_dim=4), 8
TALL_OUT = 18  # more than there are inputs
EIGHTS = 16  # inputs in which runs of eight fit twice
LONG = 5  # tokens of a padded text
IN_DECODER = {"embedded": "embed.tokens.out", "prompts": "embed.tokens.out", "keys": "attn.kv", "heads": "attn.heads"}
DECODER = "A decoder, below, with what the method does where the first word says."
LABELS = 6
Q, NORM, DOWN = "layers.0.attn.q", "layers.0.attn.norm", "layers.0.mlp.down"
Arrays = dict[str, Any]


class OneRun(Run):
    """A `Run` of a model of one part, whose dropout mask may be given: `keep` is 1 where an element stays."""

    keep: Any = None

    def dropout(self, x: Any, p: float) -> Any:
        return super().dropout(x, p) if self.keep is None else x * (self.keep * (1 / (1 - p)))


def one(
    method: Method, arrays: Arrays, params: Mapping[str, Any], sites: Mapping[str, Arrays] | tuple[str, ...] = (f"{Q}.weight",),
    arch: Arch = ARCH, t: int = T, **options: Any,
) -> OneRun:  # fmt: skip
    """A method at one site of a model that has these parameters alone, to be run there: `one(…).linear(module, x)`.

    `arrays` are the method's at that site, or `sites` maps several to theirs. What sites share goes by its declaration.
    """
    at = dict.fromkeys(sites, arrays) if isinstance(sites, tuple) else sites
    named: Arrays = {}
    for site, own in at.items():
        for name, a in own.items():
            shared = (it := array_of(type(method), name)) is not None and it.shared
            named[f"{'' if shared else site}:{name}"] = a
    model = Model(arch, {n: W for n, W in params.items() if W is not None})
    adapter = Adapter("one", method, dict.fromkeys(at, method), named, frozenset())
    run = OneRun(Adapted(model, (adapter,)), **options)
    run.tokens = Tokens(t)
    return run


def held(method: Method, W: Any) -> Any:
    """The base weight as the method holds it: quantised and back, perhaps."""
    made = declared(type(method)).held
    W4: Any = made and made.make(
        method, Facts(method, Site(f"{Q}.weight", tuple(W.shape), "linear", ARCH, value(W), value(W).dtype))
    )
    return W if W4 is None else widened(W4)


def bias_of(method: Method, b: Any, arrays: Arrays, W: Any) -> Any:
    """The bias as the method makes it, over this weight."""
    return change_of(method, arrays).bias_over(b, lambda: W)


def at_linear(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays, module: str = Q) -> Arrays:
    params = {f"{module}.weight": held(method, inputs["W"]), f"{module}.bias": inputs["b"]}
    run = one(method, arrays, params, (f"{module}.weight",), arch, train="keep" in inputs)
    run.keep = inputs.get("keep")
    run.batch = Batch(task_ids=inputs.get("task_ids"), input_ids=inputs.get("input_ids"))
    run.prepare(lambda: SimpleNamespace(hidden=inputs.get("h")))
    return dict(y=run.linear(module, inputs["x"]))


def at_headed(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    return dict(y=ops.linear(at_linear(arch, method, inputs, arrays)["y"], inputs["H"], inputs["c"]))


def at_bias(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    run = one(method, arrays, {f"{Q}.weight": inputs["W"], f"{Q}.bias": inputs["b"]}, (f"{Q}.bias",), arch)
    return dict(y=run.linear(Q, inputs["x"]))


def at_norm(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    params = {f"{NORM}.weight": inputs["W"], f"{NORM}.bias": inputs["b"]}
    run = one(method, arrays, params, (f"{NORM}.weight",), dataclasses.replace(arch, norm="layer"))
    return dict(y=norm(run, NORM, inputs["x"]))


def at_table(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    run = one(method, arrays, {"embed.tokens.weight": inputs["W"]}, ("embed.tokens.weight",), arch)
    return dict(y=run.lookup("embed.tokens", inputs["ids"]))


def at_tied(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    run = one(
        method,
        arrays,
        {"embed.tokens.weight": inputs["W"]},
        ("embed.tokens.weight",),
        dataclasses.replace(arch, tied=True),
    )
    return dict(y=run.lookup("embed.tokens", inputs["ids"]), z=run.linear("head", inputs["h"]))


def at_activation(site: str, of: str, **facts: str) -> Callable[[Arch, Method, Arrays, Arrays], Arrays]:
    """At an activation, which is the input `of`; `facts` are what the transformer shows there, by the inputs' names."""

    def act(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
        params = {f"layers.0.attn.{k[1:]}.weight": W for k, W in inputs.items() if k in ("Wk", "Wv")}
        run = one(method, arrays, params, (site,), arch)
        shown = {name: inputs[k] for name, k in facts.items()}
        if "x" in shown:
            shown["combine"] = lambda a: shown["x"] + a
        return dict(y=run.at(site, inputs[of], **shown))

    return act


def at_tasked(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    site = "embed.tokens.out"
    run = one(method, arrays, {}, (site,), arch)
    run.batch = Batch(task_ids=inputs["task_ids"])
    return dict(y=run.at(site, inputs["h"]))


def at_kv(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    site = "layers.0.attn.kv"
    k, v = one(method, arrays, {}, (site,), arch).at(site, (inputs["k"], inputs["v"]))
    return dict(k=k, v=v)


def at_ends(arch: Arch, method: Any, inputs: Arrays, arrays: Arrays) -> Arrays:
    run = one(method, arrays, {}, ("embed.out", "head.in"), arch)
    return dict(y=run.at("embed.out", inputs["h"]), z=run.at("head.in", inputs["u"]))


def at_ladder(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    sites = {}
    for site in ("embed.out", "layers.0.out", "final.out"):
        start = site.split(".")[0] + "_"
        sites[site] = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
    run = one(method, {}, {}, sites, arch)
    run.at("embed.out", inputs["h0"])
    return dict(y=run.at("final.out", run.at("layers.0.out", inputs["h1"])))


def at_wrapped(arch: Arch, method: Any, inputs: Arrays, arrays: Arrays) -> Arrays:
    sites: dict[str, Arrays] = {"embed.out": {k: v for k, v in arrays.items() if not k.startswith("layers_")}}
    for n in range(2):
        start = f"layers_{n}_"
        sites[f"layers.{n}"] = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
    run = one(method, {}, {}, sites, arch)
    h = run.at("embed.out", inputs["h"])
    for n in range(2):
        h = run.around(f"layers.{n}", partial(ops.mul, inputs[f"f{n}"]), h)
    return dict(y=h)


LAYER = dict(
    norm="attn.norm", Wq="attn.q", Wk="attn.k", Wv="attn.v", Wo="attn.o"
)  # of a decoder; these of every layer, numbered


def in_decoder(of: str) -> Callable[[Arch, Method, Arrays, Arrays], Arrays]:
    """In a decoder of attention alone, at the site `of` of the text or of every layer."""

    def act(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
        d, dtype = arch.d, inputs["table"].dtype
        params: Arrays = {
            "embed.tokens.weight": inputs["table"],
            "final.norm.weight": inputs["norm"],
            "head.weight": inputs["head"],
        }
        own: dict[str, Arrays] = {site: {} for site in sites_of(of, arch)}
        for name, a in arrays.items():
            to = [s for s in own if name.startswith(f"{s.replace('.', '_')}_")] if len(own) > 1 else []
            for site in to or own:
                own[site][name.removeprefix(f"{site.replace('.', '_')}_") if to else name] = a
        for i in range(arch.layers):
            params |= {f"layers.{i}.{module}.weight": inputs[f"{k}{i}"] for k, module in LAYER.items()}
            params |= {f"layers.{i}.mlp.norm.weight": xp.ones(d, dtype)}
            params |= {
                f"layers.{i}.mlp.{k}.weight": xp.zeros(shape, dtype) for k, shape in (("up", (1, d)), ("down", (d, 1)))
            }
        first = int(inputs.get("past", inputs["ids"].shape[1]))
        run = one(method, {}, params, own, arch, cache=Growing() if "past" in inputs else None)
        mask, at = to_host(inputs["mask"])[:, :first].astype(bool), to_host(inputs["position_ids"])[:, :first]
        text, labels, past, found = inputs["ids"][:, :first], None if "past" in inputs else inputs["labels"], 0, []
        for j in range(first, inputs["ids"].shape[1] + 1):
            told = run.forward(
                Batch(text, to_device(mask), labels, position_ids=to_device(at), task_ids=inputs.get("task_ids")), past
            )
            found.append(told.logits[:, -text.shape[1] :])
            past, mask, at = carried(told.tokens, past, mask, at)
            text = inputs["ids"][:, j : j + 1]
        y = ops.concatenate(*found, axis=1) if len(found) > 1 else found[0]
        out = dict(y=y * inputs["mask"].astype(dtype)[:, :, None])
        return out if labels is None else out | dict(loss=told.loss)

    return act


def sites_of(end: str, arch: Arch) -> list[str]:
    return [end] if end.startswith("embed.") else [f"layers.{i}.{end}" for i in range(arch.layers)]
