"""Where a method acts, on plain arrays: one linear, one table, one activation. What recorded cases are made of.

A `Place` names the arrays that meet a method there and calls it. Sizes are distinct, so that no transposition passes: batch 3,
time 4, in 14, out 10; 4 heads over 2 of keys and values, of width 5; 11 words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from minipeft.engine import ops
from minipeft.engine.backend import to_host
from minipeft.engine.tensor import value
from minipeft.errors import Unfit
from minipeft.method import Base, Method, Site, frozen
from minipeft.model.arch import Arch
from minipeft.model.transformer import Tokens

B, T, IN, OUT, WORDS = 3, 4, 14, 10, 11
ARCH = Arch("llama", d=IN, layers=1, heads=4, kv_heads=2, head_dim=5, ff=22, vocab=WORDS, norm="rms", eps=1e-5)
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A kind of site: `inputs` are the shapes of what meets the method there, by name; `call` gives its outputs by name.

    `given` are inputs that no gradient is asked for: parameters of the base, ids.
    """

    name: str
    sites: tuple[Site, ...]
    inputs: Mapping[str, tuple[int, ...]]
    call: Callable[[Method, Arrays, Arrays], Arrays]  # (method, inputs, arrays) -> outputs
    given: tuple[str, ...] = ()
    about: str = ""  # for the page of the format


def here(**facts: Any) -> SimpleNamespace:
    """An evaluation pass at one site."""
    known = dict(train=False, prefill=True, state={}, site="layers.0", layer="layers.0", index=0, arch=ARCH)
    return SimpleNamespace(**known | dict(tokens=Tokens(T), dropout=lambda x, p: x) | facts)


def _site(name: str, shape: tuple[int, ...], kind: str) -> Site:
    return Site(name, shape, kind, ARCH, np.zeros(shape), np.dtype(np.float64))


def held(method: Method, W: Any) -> Any:
    """The base weight as the method holds it: quantised and back, perhaps."""
    if type(method).base is Method.base:
        return W
    held = method.base(Site("layers.0.attn.q.weight", tuple(W.shape), "linear", ARCH, value(W), value(W).dtype))
    return W if held is None else held.dequantize()


def _linear(method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    x, W, b = inputs["x"], held(method, inputs["W"]), inputs["b"]
    facts: Arrays = {}
    if "task_ids" in inputs:
        ids = inputs["task_ids"]
        facts = dict(
            task_ids=ids, run=SimpleNamespace(batch=SimpleNamespace(task_ids=ids)), host=lambda _: to_host(ids)
        )
    if "keep" in inputs:  # a training pass whose dropout mask is given
        facts |= dict(train=True, dropout=lambda x, p: x * (inputs["keep"] * (1 / (1 - p))))
    spot = here(**facts)
    if "h" in inputs:  # a first pass of the model, whose hidden states choose
        shared = {k: v for k, v in arrays.items() if k[0] in "Vv"}
        method.before(spot, lambda: SimpleNamespace(hidden=inputs["h"]), **shared)  # type: ignore[arg-type]
        arrays = {k: v for k, v in arrays.items() if k not in shared}
    if hasattr(method, "forward"):
        under = Base(W, b, lambda x: ops.linear(x, W, b), False)
        return dict(y=method.forward(x, under, spot, **arrays))
    return dict(y=ops.linear(x, method.weight(W, **arrays), bias_of(method, b, arrays)))


def bias_of(method: Method, b: Any, arrays: Arrays) -> Any:
    """The bias as the method makes it."""
    return method.bias(b, **arrays) if hasattr(method, "bias") else b


def _bias(method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    return dict(y=ops.linear(inputs["x"], inputs["W"], method.weight(inputs["b"], **arrays)))


def _table(method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    W, ids = inputs["W"], inputs["ids"]
    if hasattr(method, "forward"):
        under = Base(W, None, lambda ids: ops.take(W, ids=ids), True)
        return dict(y=method.forward(ids, under, here(site="embed.tokens.weight"), **arrays))
    return dict(y=ops.take(method.weight(W, **arrays), ids=ids))


def _output(method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    a, u, x = inputs["a"], inputs["u"], inputs["x"]
    return dict(y=method.apply(a, here(u=u, x=x, combine=lambda a: x + a), **arrays))


def _layer(method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    return dict(y=method.apply(inputs["h"], here(), **arrays))


def _heads(method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    known = {"attn.k.weight": inputs["Wk"], "attn.v.weight": inputs["Wv"]}
    spot = here(site="layers.0.attn.heads", q=inputs["q"], param=known.get)
    return dict(y=method.apply(inputs["o"], spot, **arrays))


def _kv(method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    k, v = method.apply((inputs["k"], inputs["v"]), here(site="layers.0.attn.kv"), **arrays)
    return dict(k=k, v=v)


def _ends(method: Any, inputs: Arrays, arrays: Arrays) -> Arrays:
    return dict(y=method.turn(inputs["h"], **arrays), z=method.back(inputs["u"], **arrays))


def _ladder(method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
    state: Arrays = {}
    out = None
    for site, h in (("embed.out", inputs["h0"]), ("layers.0.out", inputs["h1"]), ("final.out", inputs["h1"])):
        start = site.split(".")[0] + "_"
        own = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
        out = method.apply(h, here(site=site, state=state), **own)
    return dict(y=out)


LINEAR = _site("layers.0.attn.q.weight", (OUT, IN), "linear")
STREAM = (B, T, IN)
PLACES = {
    p.name: p
    for p in (
        Place("linear", (LINEAR,), dict(x=STREAM, W=(OUT, IN), b=(OUT,)), _linear, ("W", "b"),
              "A linear: x (batch, time, in), its weight W (out, in) and bias b (out); y (batch, time, out)."),
        Place("tasks", (LINEAR,), dict(x=STREAM, W=(OUT, IN), b=(OUT,), task_ids=(B,)), _linear, ("W", "b", "task_ids"),
              "A linear, and the task of every row: task_ids (batch)."),
        Place("gated", (LINEAR,), dict(x=STREAM, h=STREAM, W=(OUT, IN), b=(OUT,)), _linear, ("W", "b", "h"),
              "A linear, and h (batch, time, d), the final hidden states of a first pass."),
        Place("bias", (_site("layers.0.attn.q.bias", (OUT,), "bias"),), dict(x=STREAM, W=(OUT, IN), b=(OUT,)), _bias,
              ("W", "b"), "A linear whose bias the method changes."),
        Place("table", (_site("embed.tokens.weight", (WORDS, IN), "embedding"),), dict(ids=(B, T), W=(WORDS, IN)), _table,
              ("ids", "W"), "A token table: ids (batch, time), W (words, d); y (batch, time, d)."),
        Place("output", (_site("layers.0.mlp.out", (IN,), "activation"),), dict(a=STREAM, u=STREAM, x=STREAM), _output, (),
              "The output a of a sub-layer, its input u, and the residual stream x it is added to, in a pre-norm layer."),
        Place("layer", (_site("layers.0.out", (IN,), "activation"),), dict(h=STREAM), _layer, (),
              "The hidden state h (batch, time, d) that leaves a layer; every token is real."),
        Place("heads", (_site("layers.0.attn.heads", (20,), "activation"),),
              dict(o=(B, T, 20), q=(B, 4, T, 5), Wk=(10, IN), Wv=(10, IN)), _heads, ("Wk", "Wv"),
              "Joined heads o (batch, time, heads·e), queries q (batch, heads, time, e), and the layer's key and value weights."),
        Place("keys", (_site("layers.0.attn.kv", (2, 5), "activation"),), dict(k=(B, 2, T, 5), v=(B, 2, T, 5)), _kv, (),
              "Keys and values (batch, heads of keys, time, e)."),
        Place("embedded", (_site("embed.tokens.out", (IN,), "activation"),), dict(h=STREAM), _layer, (),
              "The embedded text h (batch, time, d), before positions."),
        Place("ends", (_site("embed.out", (IN,), "activation"), _site("head.in", (IN,), "activation")),
              dict(h=STREAM, u=STREAM), _ends, (), "y is made of h after the embedding, z of u before the head."),
        Place("ladder", tuple(_site(n, (IN,), "activation") for n in ("embed.out", "layers.0.out", "final.out")),
              dict(h0=STREAM, h1=STREAM), _ladder, ("h0", "h1"),
              "h0 after the embedding and h1 after the only layer; y in place of the final hidden state."),
    )
}  # fmt: skip
BY_SITE = {
    "attn.q.weight": "linear", "mlp.out": "output", "attn.out": "output", "attn.heads": "heads", "attn.kv": "keys", "embed.tokens.out": "embedded",
    "embed.tokens.weight": "table", "head.in": "ends", "final.out": "ladder", "layers.0.out": "layer", ".bias": "bias",
    ".weight": "linear",
}  # fmt: skip


def place_of(method: Method) -> Place:
    """The place a method acts at, by what its targets match in a small Llama. Raises `Unfit` if there is none."""
    from minipeft.conformance import tiny
    from minipeft.run import select

    if hasattr(method, "n_tasks"):
        return PLACES["tasks"]
    if type(method).before is not Method.before:
        return PLACES["gated"]
    family = "bert" if "bias" in method.targets else "llama"
    names = [s.name for s in select(tiny.model(family), method.targets)]
    for end, place in BY_SITE.items():
        if any(n.endswith(end) for n in names):
            return PLACES[place]
    raise Unfit(f"{method.name}: no place is known for {names[0]}")


def arrays_at(
    place: Place, method: Method, rng: np.random.Generator, tensors: Mapping[str, Any]
) -> tuple[Arrays, tuple[str, ...]]:
    """The method's arrays at a place as it starts there, and the names of those that are trained.

    `tensors` may hold the base's W and b, a gradient G of W, and data X for methods that measure before they start.
    """
    shape = place.sites[0].shape
    W = tensors.get("b" if place.name == "bias" else "W", rng.standard_normal(shape))
    asks: Arrays = dict(W=W, params={"embed.tokens.weight": rng.standard_normal((WORDS, IN))})
    if "grads" in method.needs:
        asks["grad"] = tensors["G"] if "G" in tensors else rng.standard_normal(shape)
    if "inputs" in method.needs:
        asks["inputs"] = [tensors["X"] if "X" in tensors else rng.standard_normal((9, IN))]
    sites = [dataclasses.replace(s, **asks) for s in place.sites]
    found: Arrays = dict(method.shared(sites, rng))
    for site, own in method.init_all(sites, rng).items():
        start = site.split(".")[0] + "_" if len(place.sites) > 1 and own else ""
        found |= {start + k: a for k, a in own.items()}
    plain = {k: np.asarray(to_host(a.array if isinstance(a, frozen) else a)) for k, a in found.items()}
    return plain, tuple(k for k, a in found.items() if not isinstance(a, frozen))
