"""Where a method acts, on plain arrays: one linear, one table, one activation. What recorded cases are made of.

A `Place` is a model of one part, and names the arrays that meet a method there; the method is run there as everywhere, by
`Run`. Sizes are distinct, so that no transposition passes: batch 3, time 4, in 14, out 10; 4 heads over 2 of keys and values,
of width 5; 11 words. At other sizes, in 12, out 8 and heads of width 4, blocks of more than two elements fit both ways: a block
of two may be its own transpose. Some methods need a linear of 18 outputs, or of 16 inputs, beside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.arrays import array_of, declared, needs
from minipeft.drawing import Facts, draw, draw_all, there
from minipeft.engine import ops
from minipeft.engine.backend import to_device, to_host, xp
from minipeft.engine.tensor import value
from minipeft.engine.weight import widened
from minipeft.errors import Unfit
from minipeft.method import Method, Site, change_of, routes
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
Q, NORM = "layers.0.attn.q", "layers.0.attn.norm"
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A kind of site: `inputs` are the shapes of what meets the method there, by name.

    `given` are inputs that no gradient is asked for: parameters of the base, ids.
    """

    name: str
    sites: tuple[Site, ...]
    inputs: Mapping[str, tuple[int, ...]]
    act: Callable[[Arch, Method, Arrays, Arrays], Arrays]
    given: tuple[str, ...] = ()
    about: str = ""  # for the page of the format

    def call(self, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
        """The outputs of a method here, by name."""
        return self.act(self.sites[0].arch, method, inputs, arrays)


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


def _linear(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    params = {f"{Q}.weight": held(method, inputs["W"]), f"{Q}.bias": inputs["b"]}
    run = one(method, arrays, params, arch=arch, train="keep" in inputs)
    run.keep = inputs.get("keep")
    run.batch = Batch(task_ids=inputs.get("task_ids"), input_ids=inputs.get("input_ids"))
    run.prepare(lambda: SimpleNamespace(hidden=inputs.get("h")))
    return dict(y=run.linear(Q, inputs["x"]))


def _bias(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    run = one(method, arrays, {f"{Q}.weight": inputs["W"], f"{Q}.bias": inputs["b"]}, (f"{Q}.bias",), arch)
    return dict(y=run.linear(Q, inputs["x"]))


def _norm(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    params = {f"{NORM}.weight": inputs["W"], f"{NORM}.bias": inputs["b"]}
    run = one(method, arrays, params, (f"{NORM}.weight",), dataclasses.replace(arch, norm="layer"))
    return dict(y=norm(run, NORM, inputs["x"]))


def _table(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    run = one(method, arrays, {"embed.tokens.weight": inputs["W"]}, ("embed.tokens.weight",), arch)
    return dict(y=run.lookup("embed.tokens", inputs["ids"]))


def _at(site: str, of: str, **facts: str) -> Callable[[Arch, Method, Arrays, Arrays], Arrays]:
    """At an activation, which is the input `of`; `facts` are what the transformer shows there, by the inputs' names."""

    def act(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
        params = {f"layers.0.attn.{k[1:]}.weight": W for k, W in inputs.items() if k in ("Wk", "Wv")}
        run = one(method, arrays, params, (site,), arch)
        shown = {name: inputs[k] for name, k in facts.items()}
        if "x" in shown:
            shown["combine"] = lambda a: shown["x"] + a
        return dict(y=run.at(site, inputs[of], **shown))

    return act


def _tasked(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    site = "embed.tokens.out"
    run = one(method, arrays, {}, (site,), arch)
    run.batch = Batch(task_ids=inputs["task_ids"])
    return dict(y=run.at(site, inputs["h"]))


def _kv(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    site = "layers.0.attn.kv"
    k, v = one(method, arrays, {}, (site,), arch).at(site, (inputs["k"], inputs["v"]))
    return dict(k=k, v=v)


def _ends(arch: Arch, method: Any, inputs: Arrays, arrays: Arrays) -> Arrays:
    run = one(method, arrays, {}, ("embed.out", "head.in"), arch)
    return dict(y=run.at("embed.out", inputs["h"]), z=run.at("head.in", inputs["u"]))


def _ladder(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    sites = {}
    for site in ("embed.out", "layers.0.out", "final.out"):
        start = site.split(".")[0] + "_"
        sites[site] = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
    run = one(method, {}, {}, sites, arch)
    run.at("embed.out", inputs["h0"])
    return dict(y=run.at("final.out", run.at("layers.0.out", inputs["h1"])))


def _wrapped(arch: Arch, method: Any, inputs: Arrays, arrays: Arrays) -> Arrays:
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


def _decoder(of: str) -> Callable[[Arch, Method, Arrays, Arrays], Arrays]:
    """In a decoder of attention alone, at the site `of` of the text or of every layer."""

    def act(arch: Arch, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
        d, dtype = arch.d, inputs["table"].dtype
        params: Arrays = {
            "embed.tokens.weight": inputs["table"],
            "final.norm.weight": inputs["norm"],
            "head.weight": inputs["head"],
        }
        own: dict[str, Arrays] = {site: {} for site in _sites_of(of, arch)}
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


def _sites_of(end: str, arch: Arch) -> list[str]:
    return [end] if end.startswith("embed.") else [f"layers.{i}.{end}" for i in range(arch.layers)]


def _places(arch: Arch, out: int) -> dict[str, Place]:
    """Every kind of place, at the sizes of an architecture and the width of a linear's output."""
    d, joined, kv, e = arch.d, arch.heads * arch.dh, arch.kv * arch.dh, arch.dh
    x, base = (B, T, d), dict(W=(out, d), b=(out,))

    def site(name: str, *shape: int, kind: str = "activation") -> Site:
        return Site(name, shape, kind, arch, np.zeros(shape), np.dtype(np.float64))

    linear = (site(f"{Q}.weight", out, d, kind="linear"),)
    found = (
        Place("linear", linear, dict(x=x, **base), _linear, ("W", "b"),
              "A linear: x (batch, time, in), its weight W (out, in) and bias b (out); y (batch, time, out)."),
        Place("tasks", linear, dict(x=x, **base, task_ids=(B,)), _linear, ("W", "b", "task_ids"),
              "A linear, and the task of every row: task_ids (batch)."),
        Place("read", linear, dict(x=x, **base, input_ids=(B, T)), _linear, ("W", "b", "input_ids"),
              "A linear, and the token ids that the model reads: input_ids (batch, time)."),
        Place("gated", linear, dict(x=x, h=x, **base), _linear, ("W", "b", "h"),
              "A linear, and h (batch, time, d), the final hidden states of a first pass."),
        Place("bias", (site(f"{Q}.bias", out, kind="bias"),), dict(x=x, **base), _bias, ("W", "b"),
              "A linear whose bias the method changes."),
        Place("norm", (site(f"{NORM}.weight", d, kind="norm"),), dict(x=x, W=(d,), b=(d,)), _norm, ("W", "b"),
              "A layer norm of x (batch, time, d), eps = 1e-5, its weight W (d) and bias b (d)."),
        Place("table", (site("embed.tokens.weight", WORDS, d, kind="embedding"),), dict(ids=(B, T), W=(WORDS, d)), _table, ("ids", "W"),
              "A token table: ids (batch, time), W (words, d); y (batch, time, d)."),
        Place("output", (site("layers.0.mlp.out", d),), dict(a=x, u=x, x=x), _at("layers.0.mlp.out", "a", u="u", x="x"), (),
              "The output a of a sub-layer, its input u, and the residual stream x it is added to, in a pre-norm layer."),
        Place("layer", (site("layers.0.out", d),), dict(h=x), _at("layers.0.out", "h"), (),
              "The hidden state h (batch, time, d) that leaves a layer; every token is real."),
        Place("heads", (site("layers.0.attn.heads", joined),), dict(o=(B, T, joined), q=(B, arch.heads, T, e), Wk=(kv, d), Wv=(kv, d)),
              _at("layers.0.attn.heads", "o", q="q"), ("Wk", "Wv"),
              "Joined heads o (batch, time, heads·e), queries q (batch, heads, time, e), and the layer's key and value weights."),
        Place("keys", (site("layers.0.attn.kv", arch.kv, e),), dict(k=(B, arch.kv, T, e), v=(B, arch.kv, T, e)), _kv, (),
              "Keys and values (batch, heads of keys, time, e)."),
        Place("embedded", (site("embed.tokens.out", d),), dict(h=x), _at("embed.tokens.out", "h"), (),
              "The embedded text h (batch, time, d), before positions."),
        Place("prompts", (site("embed.tokens.out", d),), dict(h=x, task_ids=(B,)), _tasked, ("task_ids",),
              "The embedded text h (batch, time, d), and the task of every row: task_ids (batch)."),
        Place("ends", (site("embed.out", d), site("head.in", d)), dict(h=x, u=x), _ends, (),
              "y is made of h after the embedding, z of u before the head."),
        Place("ladder", tuple(site(n, d) for n in ("embed.out", "layers.0.out", "final.out")), dict(h0=x, h1=x), _ladder, ("h0", "h1"),
              "h0 after the embedding and h1 after the only layer; y in place of the final hidden state."),
        Place("wrapped", tuple(site(n, d) for n in ("embed.out", "layers.0", "layers.1")), dict(h=x, f0=x, f1=x), _wrapped, (),
              "h after the embedding goes through two layers, whose methods see layer n as h ↦ h ⊙ fn; y leaves the second."),
    )  # fmt: skip
    return {p.name: p for p in (*found, *_in_decoder(arch, found))}


def _in_decoder(arch: Arch, found: tuple[Place, ...]) -> Iterator[Place]:
    """The places of methods with virtual tokens in a decoder, at the widths of an architecture."""
    deep, d = dataclasses.replace(arch, layers=2, head_dim=4, ff=1, positions="rope"), arch.d
    joined, kv = deep.heads * deep.dh, deep.kv * deep.dh
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("ids", "mask", "position_ids"), (B, LONG))
    shapes |= dict(table=(WORDS, d), norm=(d,), head=(WORDS, d))
    for i in range(deep.layers):
        layer = dict(norm=(d,), Wq=(joined, d), Wk=(kv, d), Wv=(kv, d), Wo=(d, joined))
        shapes |= {f"{k}{i}": shape for k, shape in layer.items()}
    for base, of in IN_DECODER.items():
        site = _like(found, base, deep)
        sites = tuple(dataclasses.replace(site, name=name, arch=deep) for name in _sites_of(of, deep))
        own = shapes | ({"task_ids": (B,)} if base == "prompts" else {})
        yield Place(f"{base}_in_decoder", sites, own, _decoder(of), tuple(own), DECODER)


def _like(found: tuple[Place, ...], base: str, arch: Arch) -> Site:
    """The site of a place, in another architecture."""
    site = next(p for p in found if p.name == base).sites[0]
    shape = {"keys": (arch.kv, arch.dh), "heads": (arch.heads * arch.dh,)}.get(base, site.shape)
    return dataclasses.replace(site, shape=shape)


PLACES, OTHERS = _places(ARCH, OUT), _places(OTHER_ARCH, OTHER_OUT)
SIZED = {  # the places at several sizes
    "": PLACES, "other": OTHERS, "tall": _places(ARCH, TALL_OUT), "eights": _places(dataclasses.replace(ARCH, d=EIGHTS), OUT),
}  # fmt: skip
BY_SITE = {
    "layers.0": "wrapped",
    "attn.q.weight": "linear", "mlp.out": "output", "attn.out": "output", "attn.heads": "heads", "attn.kv": "keys", "embed.tokens.out": "embedded",
    "embed.tokens.weight": "table", "head.in": "ends", "final.out": "ladder", "layers.0.out": "layer", ".bias": "bias",
    "norm.weight": "norm", ".weight": "linear",
}  # fmt: skip


def place_at(name: str, inputs: Mapping[str, Any]) -> Place:
    """The place of this name, at the sizes of these inputs."""

    def fits(place: Place) -> bool:
        return all(k in inputs and np.shape(inputs[k]) == shape for k, shape in place.inputs.items())

    return next((sized[name] for sized in SIZED.values() if fits(sized[name])), PLACES[name])


def place_of(method: Method) -> Place:
    """The place a method acts at, by what its targets match in a small Llama. Raises `Unfit` if there is none."""
    from minipeft.conformance import tiny
    from minipeft.targets import select

    if hasattr(method, "n_tasks"):
        return PLACES["tasks" if routes(method) else "prompts"]
    if hasattr(method, "invocation"):
        return PLACES["read"]
    if routes(method) and type(method).before is not Method.before:
        return PLACES["gated"]
    family = "bert" if "bias" in method.targets else "llama"
    names = [s.name for s in select(tiny.model(family), method.targets)]
    for end, place in BY_SITE.items():
        if any(n.endswith(end) for n in names):
            return PLACES[place]
    raise Unfit(f"{method.name}: no place is known for {names[0]}")


def sites_at(place: Place, method: Method, rng: np.random.Generator, tensors: Mapping[str, Any]) -> list[Site]:
    """The sites of a place with the base that is there.

    `tensors` may hold the base's W and b, its token table, a gradient G of W, and data X for methods that measure before they start.
    """
    shape, d = place.sites[0].shape, place.sites[0].arch.d
    W = tensors.get("b" if place.name == "bias" else "W", rng.standard_normal(shape))
    table = tensors["table"] if "table" in tensors else rng.standard_normal((WORDS, d))
    asks: Arrays = dict(W=W, params={"embed.tokens.weight": table})
    if "b" in place.inputs and place.name != "norm":
        asks["params"] |= {f"{Q}.bias": tensors["b"] if "b" in tensors else np.zeros(place.inputs["b"])}
    if place.name == "norm":
        asks["params"] |= {f"{NORM}.bias": tensors["b"] if "b" in tensors else rng.standard_normal(shape)}
    elif place.name == "linear" and "b" in tensors:
        asks["params"] |= {f"{Q}.bias": tensors["b"]}
    if "grads" in needs(method):
        asks["grad"] = tensors["G"] if "G" in tensors else rng.standard_normal(shape)
    if "inputs" in needs(method):
        asks["inputs"] = [tensors["X"] if "X" in tensors else rng.standard_normal((9, d))]
    return [dataclasses.replace(s, **asks) for s in place.sites]


def arrays_at(
    place: Place, method: Method, rng: np.random.Generator, tensors: Mapping[str, Any]
) -> tuple[Arrays, tuple[str, ...]]:
    """The method's arrays at a place as it starts there, and the names of those that are trained; `tensors` as of `sites_at`."""
    sites = sites_at(place, method, rng, tensors)
    found = draw(Facts(method, sites[0], rng, sites), shared=True)
    for site, (_, own) in draw_all(method, sites, rng).items():
        found |= {_start_of(place, site) + k if own else k: a for k, a in own.items()}
    return {k: np.asarray(to_host(a)) for k, (a, _) in found.items()}, tuple(k for k, (_, is_) in found.items() if is_)


def _start_of(place: Place, site: str) -> str:
    """What the names of arrays at a site begin with, where there are several: the part of the model, or the site if that is no name."""
    first = [s.name.split(".")[0] for s in place.sites]
    told = site.split(".")[0] if first.count(site.split(".")[0]) == 1 else site.replace(".", "_")
    return f"{told}_" if len(place.sites) > 1 else ""


def laws_at(place: Place, method: Method, tensors: Mapping[str, Any]) -> dict[str, tuple[str, float] | None]:
    """By which law the numbers of each array are drawn, by name; None where they are computed, or not drawn one by one."""
    sites = sites_at(place, method, np.random.default_rng(0), tensors)
    found = {it.name: it.array.start.law(it.facts) for it in there(Facts(method, sites[0], None, sites), shared=True)}
    for i, site in enumerate(sites):
        for it in there(Facts(method, site, None, sites, i)):
            found[_start_of(place, site.name) + it.name] = it.array.start.law(it.facts)
    return found
