"""Every case of a method, from its declarations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from minipeft.arrays import declared, needs
from minipeft.conformance import acting, docstrings
from minipeft.conformance.acting import IN
from minipeft.conformance.cases import Case
from minipeft.conformance.own import config_of
from minipeft.conformance.places import (
    ARCH,
    OTHER_ARCH,
    OTHERS,
    OUT,
    SIZED,
    Arrays,
    Place,
    arrays_at,
    place_of,
)  # fmt: skip
from minipeft.conformance.record.decoders import decoders, otherwise
from minipeft.conformance.record.draws import draws
from minipeft.conformance.record.files import files_of
from minipeft.conformance.record.fits import OPTIMISERS as OPTIMISERS_OF_FIT
from minipeft.conformance.record.fits import fit, fits
from minipeft.conformance.record.more import drawn, in_bfloat16, on_a_table, on_a_tied_table, sums
from minipeft.conformance.record.one import answer, combined, finished, generator, single
from minipeft.conformance.record.start import started
from minipeft.conformance.record.variants import More, more, readings, usual, variants
from minipeft.conformance.witnesses import dropped_form, starts_of
from minipeft.errors import Bad
from minipeft.interop.peft.registry import spec_named
from minipeft.method import Method, is_weight
from minipeft.quantize import CODEBOOKS

SIZES = "other_sizes"  # the variant at other sizes
OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": dict(kind="sgd", lr=0.001, momentum=0.5, weight_decay=0.1, steps=3),
    "adamw": dict(kind="adamw", lr=0.05, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, steps=3),
}


def of_method(cls: type[Method]) -> Iterator[Case]:
    """Every case of one method."""
    page = docstrings.read(cls)
    for variant, method in variants(cls):
        yield from of_variant(cls, variant, method, page, place_of(method))
    other = usual(cls, OTHER_ARCH)
    yield from of_variant(cls, SIZES, other, page, OTHERS[place_of(other).name])
    yield from decoders(cls, page)
    for variant, beside in more(cls).items():
        made = dataclasses.replace(usual(cls), **beside.settings)
        if beside.table:
            yield from on_a_table(cls, made, page)
        elif beside.tied:
            yield from on_a_tied_table(cls, variant, made, page)
        elif beside.steps:
            yield of_training(cls, variant, made, page, beside)
        else:
            yield from of_more(cls, variant, made, page, beside)


def of_training(cls: type[Method], variant: str, method: Method, page: docstrings.Page, beside: More) -> Case:
    """Some steps of the training of a variant that the method's mutants need."""
    rng, place = generator(cls.name, variant), SIZED[beside.sizes][place_of(method).name]
    inputs, _, arrays, about = drawn(cls, variant, method, page, place, rng)
    arrays = {k: single(v) for k, v in beside.arrays(arrays).items()}
    settings = OPTIMISERS_OF_FIT["adamw"] | dict(steps=beside.steps)
    return fit(inputs, arrays, about, place.call(method, inputs, arrays), settings)


def of_more(cls: type[Method], variant: str, method: Method, page: docstrings.Page, beside: More) -> Iterator[Case]:
    """Outputs, gradients and weights of a variant that the method's mutants need."""
    place, rng = SIZED[beside.sizes][beside.place or place_of(method).name], generator(cls.name, variant)
    inputs, _, drawn_ones, about = drawn(cls, variant, method, page, place, rng)
    about |= dict(since="0.2")
    arrays = {k: v if v is drawn_ones.get(k) else single(v) for k, v in beside.arrays(drawn_ones).items()}
    if beside.training:
        rate = method.dropout  # type: ignore[attr-defined]
        inputs |= {"keep": (rng.random(inputs["x"].shape) < 1 - rate).astype(np.float64)}
        about |= dict(roles=about["roles"] | {"keep": "base"})
    yield from passes(inputs, arrays, about, rng)
    if not beside.training:
        yield from weights(cls, method, place, inputs, arrays, about)


def passes(inputs: Arrays, arrays: Arrays, about: Arrays, rng: np.random.Generator) -> Iterator[Case]:
    """The outputs, and gradients."""
    forward = finished(Case(check="forward", ask="forward", inputs={**inputs, **arrays}, **about))
    yield forward
    g = {f"g.{k}": single(rng.standard_normal(v.shape)) for k, v in forward.want.items()}
    asked = about | dict(roles=about["roles"] | dict.fromkeys(g, "cotangent"))
    yield finished(Case(check="grad", ask="vjp", inputs={**inputs, **arrays, **g}, **asked))


def weights(
    cls: type[Method], method: Method, place: Place, inputs: Arrays, arrays: Arrays, about: Arrays
) -> Iterator[Case]:
    """The merged weight, its change, and the base's again, where the method merges."""
    if not (place.name in ("linear", "norm", "bias", "feedforward") and is_weight(method)):
        return
    yield finished(Case(check="merge", ask="merge", inputs={**inputs, **arrays}, **about))
    if place.name in ("linear", "feedforward"):
        delta = finished(Case(check="delta", ask="delta", inputs={**inputs, **arrays}, **about))
        if delta.want["delta"].any():  # of the bias alone there is none
            yield delta
    if declared(cls).held is None and "A0" not in arrays:  # others take the residual for their base
        yield dataclasses.replace(
            Case(check="unmerge", ask="unmerge", inputs={**inputs, **arrays}, **about), tolerance="COND", k=8.0,
            want={k: inputs[k] for k in ("W", "b")}, cond={k: 4 * float(abs(inputs[k]).max() + 1) for k in ("W", "b")},
            witnesses=("the base", "the definition"),
        )  # fmt: skip


def of_variant(cls: type[Method], variant: str, method: Method, page: docstrings.Page, place: Place) -> Iterator[Case]:
    rng = generator(cls.name, variant)
    inputs, start, arrays, about = drawn(cls, variant, method, page, place, rng)
    forward, grad = passes(inputs, arrays, about, rng)
    if variant not in ("usual", SIZES):
        usually = arrays_at(place, usual(cls), generator(cls.name), inputs)[0]
        alike = {k: v.shape for k, v in usually.items()} == {k: v.shape for k, v in arrays.items()}
        if alike and not any(_tells(case, config_of(usual(cls))) for case in (forward, grad)):
            yield from otherwise(cls, variant, method, page)
            return  # the option says how training starts, or acts elsewhere
    yield forward
    yield grad
    yield from weights(cls, method, place, inputs, arrays, about)
    if variant == SIZES:
        return
    if declared(cls).held and _tells_of_base(cls, variant, method):
        held = dict(roles={"W": "base"})
        case = finished(Case(check="dequantize", ask="dequantize", inputs={"W": inputs["W"]}, **(about | held)))
        yield dataclasses.replace(
            case, tolerance="EXACT" if case.want["W"].dtype.kind != "f" else "COND",
            witnesses=("the method's own file", "the same numbers from bitsandbytes"),
        )  # fmt: skip
        if getattr(method, "double_quant", True) is False:
            case = finished(Case(check="quantize", ask="quantize", inputs={"W": inputs["W"]}, **(about | held)))
            yield dataclasses.replace(case, tolerance="EXACT", witnesses=case.witnesses + _codes(method, case))
    if variant == "usual":
        yield from checks_of_usual(cls, method, place, inputs, start, arrays, about, rng, forward)
        if combined(cls.name):
            yield from on_a_table(cls, method, page)
            yield from on_a_tied_table(cls, "tied", method, page)
            yield from in_bfloat16(inputs, arrays, about)
    if combined(cls.name) and variant.partition("=")[0] not in readings(cls):
        yield from sums(cls, method, inputs, arrays, about, rng)


def _codes(method: Any, case: Case) -> tuple[str, ...]:
    """Every value's nearest code, by trying all. Raises `Bad` if the case holds another."""
    if method.code == "int8":
        off = np.abs(case.want["codes"] * (case.want["absmax"] / 127)[:, None] - case.inputs["W"])
        if (off > (1 / 2 + 2**-4) * case.want["absmax"][:, None] / 127).any():  # half a step, and float16's rounding
            raise Bad(f"{case.id}: a code is not the nearest")
        return ("the nearest step of each row",)
    table = CODEBOOKS[method.code]
    W, codes = case.inputs["W"].ravel().astype(np.float32), case.want["codes"]
    given = np.stack([codes >> 4, codes & 15], axis=1).ravel()[: W.size]
    c = np.repeat(case.want["absmax"], method.block)[: W.size]
    for w, at, code in zip(W, c, given, strict=True):
        if abs(table[code] - w / at) > min(abs(table - w / at)) + 1e-7:
            raise Bad(f"{case.id}: the code of {w} is {code}, which is not the nearest")
    return ("the nearest of all sixteen, two codes a byte, the first in the high half",)


def _tells_of_base(cls: type[Method], variant: str, method: Method) -> bool:
    """Whether this variant holds the base in a way of its own."""
    if variant == "usual":
        return True
    W = generator("held").standard_normal((OUT, IN))
    return not np.array_equal(acting.held(method, W), acting.held(usual(cls), W))


def _tells(case: Case, other: Mapping[str, Any]) -> bool:
    """Whether another configuration gives other results."""
    try:
        found = answer(dataclasses.replace(case, config=other))
    except (TypeError, ValueError, KeyError, IndexError):
        return True  # it has other arrays
    return any(k not in found or not np.array_equal(v, found[k]) for k, v in case.want.items())


def checks_of_usual(
    cls: type[Method], method: Method, place: Place, inputs: Arrays, start: Arrays, arrays: Arrays, about: Arrays,
    rng: np.random.Generator, forward: Case,
) -> Iterator[Case]:  # fmt: skip
    """Training, initial values and files, tried at the usual settings alone."""
    hooks = (type(method).after_step, type(method).after_backward, type(method).penalty)
    if hooks == (Method.after_step, Method.after_backward, Method.penalty):
        target = {f"target.{k}": single(rng.standard_normal(v.shape)) for k, v in forward.want.items()}
        for name, settings in OPTIMISERS.items():
            asked = about | dict(
                variant=name, options=dict(optimiser=settings), roles=about["roles"] | dict.fromkeys(target, "target"),
            )  # fmt: skip
            case = finished(Case(check="train", ask="train", inputs={**inputs, **arrays, **target}, **asked))
            if "A0" in arrays:
                case = dataclasses.replace(case, want={k: v for k, v in case.want.items() if k != "W"})
            yield dataclasses.replace(case, k=8.0 * settings["steps"])
    yield from fits(inputs, arrays, about, dict(forward.want))
    dropped = "dropout" in {f.name for f in dataclasses.fields(cls)} and place.name == "linear"
    if dropped and (not hasattr(cls, "forward") or dropped_form(cls.name)):  # which may sample, or drop elsewhere
        keep = {"keep": (rng.random(inputs["x"].shape) < 0.7).astype(np.float64)}
        asked = about | dict(config=about["config"] | dict(dropout=0.3), roles=about["roles"] | {"keep": "base"})
        yield finished(Case(check="dropout", ask="forward", inputs={**inputs, **arrays, **keep}, **asked))
        asked = about | dict(config=asked["config"], variant="evaluation", since="0.2")
        yield finished(Case(check="dropout", ask="forward", inputs={**inputs, **arrays}, **asked))
    base = {k: v for k, v in inputs.items() if about["roles"][k] == "base"}
    measured = {"G": inputs["W"] * 0 + single(rng.standard_normal((OUT, IN)))} if "grads" in needs(method) else {}
    measured |= {"X": single(rng.standard_normal((9, IN)))} if "inputs" in needs(method) else {}
    shapes = {k: np.zeros(v.shape) for k, v in start.items()}
    identity = {}
    if method.identity and place.name == "linear":
        identity, measured = dict(identity=True), measured | dict(x=inputs["x"])
    roles = dict.fromkeys(base, "base") | dict.fromkeys(measured, "input")
    yield dataclasses.replace(
        Case(check="init", ask="init", inputs={**base, **measured}, **(about | dict(roles=roles, options=identity))), tolerance="SHAPES",
        want={k: v for k, v in shapes.items() if about["roles"].get(k) == "array"}, cond=dict.fromkeys(shapes, 0.0),
        witnesses=("the method's table of arrays", "the shapes that init gives"),
    )  # fmt: skip
    floats = {k: list(v.shape) for k, v in start.items() if about["roles"].get(k) == "array" and v.dtype.kind == "f"}
    yield draws(about, place, {**base, **{k: v for k, v in measured.items() if k != "x"}}, floats)
    if begun := starts_of(cls.name):
        given = {**base, **measured}
        case = Case(check="start", ask="init", inputs=given, **(about | dict(roles=roles)))
        yield started(case, *begun)
    spec = spec_named(cls.name)
    if spec and spec.on_layer and spec.keys and not spec.unsaved and place.name == "linear" and "m_emb" not in arrays:
        spec = spec.of(spec.write(method, ARCH), ARCH)
        yield from files_of(spec, method, inputs, {**start, **{k: arrays[k] for k in trained_of(about)}}, about)


def trained_of(about: Arrays) -> list[str]:
    return [k for k, r in about["roles"].items() if r == "array"]
