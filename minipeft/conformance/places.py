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
from typing import Any

import numpy as np

from minipeft.arrays import needs
from minipeft.conformance.acting import (
    ARCH,
    DECODER,
    DOWN,
    EIGHTS,
    IN_DECODER,
    LABELS,
    LONG,
    NORM,
    OTHER_ARCH,
    OTHER_OUT,
    OUT,
    TALL_OUT,
    WORDS,
    Arrays,
    B,
    Q,
    T,
    at_activation,
    at_bias,
    at_ends,
    at_headed,
    at_kv,
    at_ladder,
    at_linear,
    at_norm,
    at_table,
    at_tasked,
    at_tied,
    at_wrapped,
    in_decoder,
    sites_of,
)  # fmt: skip
from minipeft.drawing import Facts, draw, draw_all, there
from minipeft.engine.backend import to_host
from minipeft.errors import Unfit
from minipeft.method import Method, Site, routes
from minipeft.model.arch import Arch


@dataclass(frozen=True)
class Place:
    """A kind of site: `inputs` are the shapes of what meets the method there, by name.

    `given` are inputs that no gradient is asked for: parameters of the base, ids.
    """

    name: str
    sites: tuple[Site, ...]
    inputs: Mapping[str, tuple[int, ...]]
    act: Callable[..., Arrays]  # (arch, method, inputs, arrays)
    given: tuple[str, ...] = ()
    about: str = ""  # for the page of the format

    def call(self, method: Method, inputs: Arrays, arrays: Arrays) -> Arrays:
        """The outputs of a method here, by name."""
        return self.act(self.sites[0].arch, method, inputs, arrays)


def _places(arch: Arch, out: int) -> dict[str, Place]:
    """Every kind of place, at the sizes of an architecture and the width of a linear's output."""
    d, joined, kv, e = arch.d, arch.heads * arch.dh, arch.kv * arch.dh, arch.dh
    x, base = (B, T, d), dict(W=(out, d), b=(out,))

    def site(name: str, *shape: int, kind: str = "activation") -> Site:
        return Site(name, shape, kind, arch, np.zeros(shape), np.dtype(np.float64))

    linear = (site(f"{Q}.weight", out, d, kind="linear"),)
    found = (
        Place("linear", linear, dict(x=x, **base), at_linear, ("W", "b"),
              "A linear: x (batch, time, in), its weight W (out, in) and bias b (out); y (batch, time, out)."),
        Place("tasks", linear, dict(x=x, **base, task_ids=(B,)), at_linear, ("W", "b", "task_ids"),
              "A linear, and the task of every row: task_ids (batch)."),
        Place("read", linear, dict(x=x, **base, input_ids=(B, T)), at_linear, ("W", "b", "input_ids"),
              "A linear, and the token ids that the model reads: input_ids (batch, time)."),
        Place("gated", linear, dict(x=x, h=x, **base), at_linear, ("W", "b", "h"),
              "A linear, and h (batch, time, d), the final hidden states of a first pass."),
        Place("bias", (site(f"{Q}.bias", out, kind="bias"),), dict(x=x, **base), at_bias, ("W", "b"),
              "A linear whose bias the method changes."),
        Place("norm", (site(f"{NORM}.weight", d, kind="norm"),), dict(x=x, W=(d,), b=(d,)), at_norm, ("W", "b"),
              "A layer norm of x (batch, time, d), eps = 1e-5, its weight W (d) and bias b (d)."),
        Place("table", (site("embed.tokens.weight", WORDS, d, kind="embedding"),), dict(ids=(B, T), W=(WORDS, d)), at_table, ("ids", "W"),
              "A token table: ids (batch, time), W (words, d); y (batch, time, d)."),
        Place("tied", (site("embed.tokens.weight", WORDS, d, kind="embedding"),), dict(ids=(B, T), W=(WORDS, d), h=x), at_tied, ("ids", "W"),
              "A token table that is the output head too: ids and W as in `table`, h (batch, time, d) goes into the head; z (batch, time, words)."),
        Place("feedforward", (site(f"{DOWN}.weight", out, d, kind="linear"),), dict(x=x, **base), partial(at_linear, module=DOWN), ("W", "b"),
              "As `linear`, of the last linear of a feed-forward: x is what the activation gives."),
        Place("headed", linear, dict(x=x, **base, H=(LABELS, out), c=(LABELS,)), at_headed, ("W", "b", "H", "c"),
              "As `linear`, and behind it a second one, which is not adapted: H (labels, out) and c (labels); y is what that gives."),
        Place("output", (site("layers.0.mlp.out", d),), dict(a=x, u=x, x=x), at_activation("layers.0.mlp.out", "a", u="u", x="x"), (),
              "The output a of a sub-layer, its input u, and the residual stream x it is added to, in a pre-norm layer."),
        Place("layer", (site("layers.0.out", d),), dict(h=x), at_activation("layers.0.out", "h"), (),
              "The hidden state h (batch, time, d) that leaves a layer; every token is real."),
        Place("heads", (site("layers.0.attn.heads", joined),), dict(o=(B, T, joined), q=(B, arch.heads, T, e), Wk=(kv, d), Wv=(kv, d)),
              at_activation("layers.0.attn.heads", "o", q="q"), ("Wk", "Wv"),
              "Joined heads o (batch, time, heads·e), queries q (batch, heads, time, e), and the layer's key and value weights."),
        Place("keys", (site("layers.0.attn.kv", arch.kv, e),), dict(k=(B, arch.kv, T, e), v=(B, arch.kv, T, e)), at_kv, (),
              "Keys and values (batch, heads of keys, time, e)."),
        Place("embedded", (site("embed.tokens.out", d),), dict(h=x), at_activation("embed.tokens.out", "h"), (),
              "The embedded text h (batch, time, d), before positions."),
        Place("prompts", (site("embed.tokens.out", d),), dict(h=x, task_ids=(B,)), at_tasked, ("task_ids",),
              "The embedded text h (batch, time, d), and the task of every row: task_ids (batch)."),
        Place("ends", (site("embed.out", d), site("head.in", d)), dict(h=x, u=x), at_ends, (),
              "y is made of h after the embedding, z of u before the head."),
        Place("ladder", tuple(site(n, d) for n in ("embed.out", "layers.0.out", "final.out")), dict(h0=x, h1=x), at_ladder, ("h0", "h1"),
              "h0 after the embedding and h1 after the only layer; y in place of the final hidden state."),
        Place("wrapped", tuple(site(n, d) for n in ("embed.out", "layers.0", "layers.1")), dict(h=x, f0=x, f1=x), at_wrapped, (),
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
        sites = tuple(dataclasses.replace(site, name=name, arch=deep) for name in sites_of(of, deep))
        own = shapes | ({"task_ids": (B,)} if base == "prompts" else {})
        yield Place(f"{base}_in_decoder", sites, own, in_decoder(of), tuple(own), DECODER)


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
