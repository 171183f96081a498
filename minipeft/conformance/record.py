"""Makes the recorded cases: `python -m minipeft.conformance.record [FOLDER]`. Running it again gives the same bytes.

Of every method in the registry, every option its fields name is tried at every check that applies. Nothing is written that
two witnesses do not agree on, and nothing degenerate.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.checkpoints.native import decode
from minipeft.conformance import cases as files
from minipeft.conformance import docstrings, places
from minipeft.conformance.cases import Case
from minipeft.conformance.closed import CLOSED
from minipeft.conformance.own import Own, config_of
from minipeft.conformance.places import ARCH, IN, OUT, WORDS, Arrays, B, Place, T, arrays_at, place_of
from minipeft.errors import Bad
from minipeft.interop.peft import layer
from minipeft.interop.peft.registry import spec_named
from minipeft.interop.peft.spec import Spec
from minipeft.method import METHODS, Method, load_methods
from minipeft.quantize import NF4_CODEBOOK
from minipeft.run import Adapter
from minipeft.settings import choices

OWN = Own()
SETTINGS: dict[str, Any] = dict(
    r=2, alpha=6.0, reduction=5.0, p=3, K=3, block=7, n_frequency=9, scaling=7.0, n_tasks=2, n_skills=3, tokens=(2, 5, 7),
    effective_rank=3, s=2.5, T=0.7, n_pre=2, n_suf=1, target_r=1, temperature=0.8,
)  # fmt: skip
ONLY = {"s": "parallel_adapter", "T": "ladder_side"}  # names with other meanings
PLAIN = (
    "p_tuning",
    "adapter_fusion",
    "ladder_side",
    "llama_adapter",
)  # whose options make large files or act elsewhere
STEP = 1e-5  # of central differences
OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": dict(kind="sgd", lr=0.001, momentum=0.5, weight_decay=0.1, steps=3),
    "adamw": dict(kind="adamw", lr=0.05, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, steps=3),
}


def usual(cls: type[Method]) -> Method:
    """The method with settings under which nothing is 0 or 1 or equal to something else."""
    method = cls.sized(ARCH)
    known = {f.name for f in dataclasses.fields(cls)}
    chosen = {k: v for k, v in SETTINGS.items() if k in known and ONLY.get(k, cls.name) == cls.name}
    spec = spec_named(cls.name)
    return dataclasses.replace(method, **chosen | (spec.recorded if spec else {}))


def options(cls: type[Method]) -> dict[str, tuple[Any, ...]]:
    """What each field may be else: both values of a flag, and the words of a choice."""
    words = {name: c.options for name, c in choices(cls).items() if c.varied}
    found = {f.name: (False, True) if f.type == "bool" else words.get(f.name) for f in dataclasses.fields(cls)}
    return {k: v for k, v in found.items() if v is not None}


def readings(cls: type[Method]) -> tuple[str, ...]:
    """Fields that are a reading: where paper and practice split."""
    return tuple(name for name, c in choices(cls).items() if c.reading)


def variants(cls: type[Method]) -> Iterator[tuple[str, Method]]:
    """The method as usual, and with each option changed alone."""
    method = usual(cls)
    yield "usual", method
    for field, words in options(cls).items() if cls.name not in PLAIN else ():
        for choice in words:
            if choice == getattr(method, field):
                continue
            try:
                yield f"{field}={choice}", dataclasses.replace(method, **{field: choice})
            except Bad:
                continue  # an option that does not go with the others


# --- inputs -----------------------------------------------------------------------------------------------------------


def generator(*what: Any) -> np.random.Generator:
    """A generator that a case's name fixes."""
    return np.random.default_rng(zlib.crc32("/".join(map(str, what)).encode()))


def single(a: np.ndarray) -> np.ndarray:
    """The values as float32 holds them, so that an implementation in float32 is given the same numbers."""
    return a.astype(np.float32).astype(np.float64) if a.dtype.kind == "f" else a


def inputs_of(place: Place, method: Any, rng: np.random.Generator) -> Arrays:
    """What meets the method there."""
    out: Arrays = {}
    for name, shape in place.inputs.items():
        if name == "ids":
            out[name] = rng.integers(0, WORDS, shape)
            out[name].flat[:3] = (2, 5, 2)  # trained tokens, one of them twice
        elif name == "task_ids":
            out[name] = np.arange(shape[0]) % method.n_tasks
        else:
            out[name] = single(rng.standard_normal(shape) * (shape[-1] ** -0.5 if name[0] == "W" else 1.0))
    return out


def moved(arrays: Arrays, trained: tuple[str, ...], rng: np.random.Generator) -> Arrays:
    """Arrays in training: those that start at 0 or 1 have left it; adapters that a method is built over are trained too."""

    def noise(v: np.ndarray) -> np.ndarray:
        return (0.4 if v.ndim < 2 else 0.9 * v.shape[-1] ** -0.5) * rng.standard_normal(v.shape)

    return {k: single(v + noise(v)) if k in trained else v for k, v in arrays.items()}


# --- one case ---------------------------------------------------------------------------------------------------------


def conditions(case: Case, told: Callable[[Case], Arrays] | None = None) -> dict[str, float]:
    """How much each result moves for relative changes of every number that goes in: the largest of a few random ones, times 4."""
    rng, step = np.random.default_rng(5), 2.0**-26
    told = told or answer
    at = told(case)
    sizes = {k: float(abs(v).max()) for k, v in at.items() if v.dtype.kind == "f"}
    for _ in range(4):
        nudged = {
            k: v * (1 + step * rng.choice([-1.0, 1.0], v.shape)) if v.dtype.kind == "f" else v
            for k, v in case.inputs.items()
        }
        there = told(dataclasses.replace(case, inputs=nudged))
        for k in sizes:
            sizes[k] = max(sizes[k], float(abs(there[k] - at[k]).max()) / step)
    return {k: 4 * v for k, v in sizes.items()}


def answer(case: Case) -> Arrays:
    """What minipeft computes."""
    return {k: np.asarray(v) for k, v in getattr(OWN, case.ask)(case).items()}


def slope(case: Case, name: str, rng: np.random.Generator) -> tuple[float, float]:
    """The derivative of Σ g·output by one input along a random direction: by central differences, and by the gradient."""
    direction = rng.standard_normal(case.inputs[name].shape)

    def at(by: float) -> float:
        moved = dataclasses.replace(case, inputs={**case.inputs, name: case.inputs[name] + by * direction})
        out = OWN.forward(moved)
        return sum(float((out[k] * case.inputs[f"g.{k}"]).sum()) for k in out)

    return (at(STEP) - at(-STEP)) / (2 * STEP), float((case.want[name] * direction).sum())


def finished(case: Case) -> Case:
    """The case with what is wanted, after its witnesses have agreed."""
    want = answer(case)
    if case.ask == "vjp":  # what the outputs do not depend on, but for rounding, is not asked for
        largest = max(float(abs(v).max()) for v in want.values())
        want = {k: v for k, v in want.items() if abs(v).max() > 1e-12 * largest}
    cond = conditions(case)
    done = dataclasses.replace(case, want={k: want[k] for k in sorted(want)}, cond={k: cond.get(k, 0.0) for k in want})
    return dataclasses.replace(done, witnesses=witnesses(done))


def witnesses(case: Case) -> tuple[str, ...]:
    """Who agrees with what is wanted. Raises `Bad` if one does not."""
    found = ["the method's own file, in float64"]
    if case.ask == "forward":
        arrays = case.named("array", "stored")
        method = OWN.method(case)
        if case.place == "table" and combined(case.method):
            _agree(case, dict(y=OWN.merge(case)["W"][case.inputs["ids"]]), "merged table")
            found.append("rows of the merged table")
        elif case.method in CLOSED:
            given = {**case.named("input", "base"), **arrays}
            closed = CLOSED[case.method](method, given)
            if "keep" in given:  # the change of the kept input, beside the base's output for all of it
                x, kept = given["x"], given["x"] * given["keep"] / (1 - method.dropout)  # type: ignore[attr-defined]
                W = places.held(method, given["W"])
                if "A0" in given:  # a residual base
                    W = W - method.scale * given["B0"] @ given["A0"]  # type: ignore[attr-defined]
                closed = dict(y=x @ W.T + CLOSED[case.method](method, given | {"x": kept})["y"] - kept @ W.T)
            _agree(case, closed, "closed form")
            found.append("a closed form written apart, number by number")
        if (
            hasattr(method, "forward")
            and hasattr(method, "weight")
            and case.place == "linear"
            and "keep" not in case.inputs
        ):
            merged = OWN.merge(case)
            b = merged.get("b", 0.0)
            _agree(case, dict(y=case.tensors["x"] @ merged["W"].T + b), "merged weight")
            found.append("the merged weight")
    elif case.ask == "vjp":
        rng = generator(case.id, "slope")
        method = OWN.method(case)
        detached = (
            getattr(method, "grad", "full") == "detached" or case.method == "osf" or getattr(method, "coft", False)
        )
        largest = sum(float(abs(v * case.inputs[f"g.{k}"]).sum()) for k, v in OWN.forward(case).items())
        for name in case.want:
            if detached and case.roles[name] == "array":
                continue
            by_differences, by_gradient = slope(case, name, rng)
            rounding = 2.0**-50 * largest / STEP  # of a difference of sums of this size
            if not abs(by_differences - by_gradient) <= 1e-7 * max(abs(by_differences), case.cond[name]) + rounding:
                raise Bad(
                    f"{case.id}: the gradient of {name} is {by_gradient}, by central differences {by_differences}"
                )
        found.append(
            "central differences along a random direction" + (", but for what is held constant" if detached else "")
        )
    elif case.ask == "combine":
        W, b = case.inputs["W"], case.inputs["b"]
        total = W.copy(), b.copy()
        for i, weight in enumerate(case.options["weights"]):
            member, own = OWN.adapter(case, i)
            total[0][:] += weight * (member.weight(W, **own) - W)  # type: ignore[attr-defined]
            total[1][:] += weight * (places.bias_of(member, b, own) - b)
        _agree(case, dict(y=case.inputs["x"] @ total[0].T + total[1]), "summed weights")
        found.append("the sum of the merged weights")
    elif case.ask == "merge_bfloat16":
        exact = OWN.merge(case)
        for k, v in case.want.items():
            bits = v.astype(np.float32).view(np.uint32)
            beside = [n.view(np.float32) for n in (bits + np.uint32(0x10000), bits - np.uint32(0x10000))]
            if (bits & 0xFFFF).any() or any((abs(v - exact[k]) > abs(n - exact[k])).any() for n in beside):
                raise Bad(f"{case.id}: {k} is not rounded to the nearest")
        found.append("no other bfloat16 is nearer")
    elif case.ask in ("delta", "merge"):
        found.append("the outputs with the merged weight")
    elif case.ask == "train":
        found.append("the optimiser's equations, written apart")
        _agree(case, _trained(case), "optimiser")
    return tuple(found)


def _agree(case: Case, other: Mapping[str, np.ndarray], what: str) -> None:
    """Raises `Bad` where a witness is not within half of the bound: a verdict must not turn on a processor's roundings."""
    for k, v in other.items():
        if k in case.want and not (abs(v - case.want[k]) <= case.k / 2 * 2.0**-53 * case.cond[k]).all():
            worst = float(abs(v - case.want[k]).max())
            raise Bad(f"{case.id}: {k} differs from the {what} by {worst}")


def _trained(case: Case) -> Arrays:
    """SGD and AdamW from their equations, with gradients from the vjp."""
    o = case.options["optimiser"]
    theta = {k: v.copy() for k, v in case.named("array").items()}
    m = {k: np.zeros_like(v) for k, v in theta.items()}
    v2 = {k: np.zeros_like(v) for k, v in theta.items()}
    for t in range(1, o["steps"] + 1):
        now = dataclasses.replace(case, inputs={**case.inputs, **theta})
        out = OWN.forward(now)
        g = {f"g.{k}": out[k] - case.inputs[f"target.{k}"] for k in out}
        asked = dataclasses.replace(
            now, inputs={**now.inputs, **g}, roles={**now.roles, **dict.fromkeys(g, "cotangent")}
        )
        grads = OWN.vjp(asked)
        for k, x in theta.items():
            if o["kind"] == "sgd":
                m[k] = o["momentum"] * m[k] + grads[k]
                theta[k] = x - o["lr"] * (m[k] + o["weight_decay"] * x)
            else:
                m[k] = o["beta1"] * m[k] + (1 - o["beta1"]) * grads[k]
                v2[k] = o["beta2"] * v2[k] + (1 - o["beta2"]) * grads[k] ** 2
                step = (m[k] / (1 - o["beta1"] ** t)) / (np.sqrt(v2[k] / (1 - o["beta2"] ** t)) + o["eps"])
                theta[k] = x - o["lr"] * (step + o["weight_decay"] * x)
    return theta


# --- all cases of a method --------------------------------------------------------------------------------------------


def of_method(cls: type[Method]) -> Iterator[Case]:
    """Every case of one method."""
    page = docstrings.read(cls)
    for variant, method in variants(cls):
        yield from of_variant(cls, variant, method, page)


def drawn(
    cls: type[Method], variant: str, method: Method, page: docstrings.Page, place: Place, rng: np.random.Generator
) -> tuple[Arrays, Arrays, Arrays, Arrays]:
    """The inputs, the arrays as they start and in training, and what all cases of the variant say."""
    inputs = inputs_of(place, method, rng)
    start, trained = arrays_at(place, method, rng, inputs)
    arrays = moved(start, tuple(start) if method.parts else trained, rng)
    roles = {k: "base" if k in place.given and k not in ("ids", "task_ids") else "input" for k in inputs}
    roles |= {k: "array" if k in trained else "stored" for k in arrays}
    about: Arrays = dict(
        method=cls.name, variant=variant, config=config_of(method), place=place.name, source=page.source,
        readings={f: str(getattr(method, f)) for f in readings(cls)}, equation=page.equations.strip("\n"), roles=roles,
    )  # fmt: skip
    return inputs, start, arrays, about


def of_variant(cls: type[Method], variant: str, method: Method, page: docstrings.Page) -> Iterator[Case]:
    place = place_of(method)
    rng = generator(cls.name, variant)
    inputs, start, arrays, about = drawn(cls, variant, method, page, place, rng)
    roles = about["roles"]
    forward = finished(Case(check="forward", ask="forward", inputs={**inputs, **arrays}, **about))
    g = {f"g.{k}": single(rng.standard_normal(v.shape)) for k, v in forward.want.items()}
    everything = {**inputs, **arrays, **g}
    asked = about | dict(roles=roles | dict.fromkeys(g, "cotangent"))
    grad = finished(Case(check="grad", ask="vjp", inputs=everything, **asked))
    if variant != "usual":
        names = set(arrays_at(place, usual(cls), generator(cls.name), inputs)[0])
        if names == set(arrays) and not any(_tells(case, config_of(usual(cls))) for case in (forward, grad)):
            return  # the option says how training starts, or acts elsewhere
    yield forward
    yield grad
    weights = place.name in ("linear", "bias") and hasattr(method, "weight")
    if weights:
        yield finished(Case(check="merge", ask="merge", inputs={**inputs, **arrays}, **about))
        if place.name == "linear":
            yield finished(Case(check="delta", ask="delta", inputs={**inputs, **arrays}, **about))
        if type(method).base is Method.base and "A0" not in arrays:  # others take the residual for their base
            yield dataclasses.replace(
            Case(check="unmerge", ask="unmerge", inputs={**inputs, **arrays}, **about), tolerance="COND", k=8.0,
            want={k: inputs[k] for k in ("W", "b")}, cond={k: 4 * float(abs(inputs[k]).max() + 1) for k in ("W", "b")},
            witnesses=("the base", "the definition"),
        )  # fmt: skip
    if type(method).base is not Method.base and _tells_of_base(cls, variant, method):
        held = dict(roles={"W": "base"})
        case = finished(Case(check="dequantize", ask="dequantize", inputs={"W": inputs["W"]}, **(about | held)))
        yield dataclasses.replace(
            case, tolerance="EXACT" if case.want["W"].dtype.kind != "f" else "COND",
            witnesses=("the method's own file", "the same numbers from bitsandbytes, recorded"),
        )  # fmt: skip
        if getattr(method, "double_quant", True) is False:
            case = finished(Case(check="quantize", ask="quantize", inputs={"W": inputs["W"]}, **(about | held)))
            yield dataclasses.replace(case, tolerance="EXACT", witnesses=case.witnesses + _codes(method, case))
    if variant == "usual":
        yield from checks_of_usual(cls, method, place, inputs, start, arrays, about, rng, forward)
        if combined(cls.name):
            yield from on_a_table(cls, method, page)
            yield from in_bfloat16(inputs, arrays, about)
    if combined(cls.name) and variant.partition("=")[0] not in readings(cls):
        yield from sums(cls, method, inputs, arrays, about, rng)


def _codes(method: Any, case: Case) -> tuple[str, ...]:
    """Every value's nearest code, by trying all sixteen. Raises `Bad` if the case holds another."""
    W, codes = case.inputs["W"].ravel().astype(np.float32), case.want["codes"]
    given = np.stack([codes >> 4, codes & 15], axis=1).ravel()[: W.size]
    c = np.repeat(case.want["absmax"], method.block)[: W.size]
    for w, at, code in zip(W, c, given, strict=True):
        if abs(NF4_CODEBOOK[code] - w / at) > min(abs(NF4_CODEBOOK - w / at)) + 1e-7:
            raise Bad(f"{case.id}: the code of {w} is {code}, which is not the nearest")
    return ("the nearest of all sixteen, two codes a byte, the first in the high half",)


def _tells_of_base(cls: type[Method], variant: str, method: Method) -> bool:
    """Whether this variant holds the base in a way of its own."""
    if variant == "usual":
        return True
    W = generator("held").standard_normal((OUT, IN))
    return not np.array_equal(places.held(method, W), places.held(usual(cls), W))


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
    dropped = "dropout" in {f.name for f in dataclasses.fields(cls)} and place.name == "linear"
    if dropped and hasattr(method, "forward"):
        keep = {"keep": (rng.random(inputs["x"].shape) < 0.7).astype(np.float64)}
        asked = about | dict(config=about["config"] | dict(dropout=0.3), roles=about["roles"] | {"keep": "base"})
        yield finished(Case(check="dropout", ask="forward", inputs={**inputs, **arrays, **keep}, **asked))
    base = {k: v for k, v in inputs.items() if about["roles"][k] == "base"}
    measured = {"G": inputs["W"] * 0 + single(rng.standard_normal((OUT, IN)))} if "grads" in method.needs else {}
    measured |= {"X": single(rng.standard_normal((9, IN)))} if "inputs" in method.needs else {}
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
    if cls.name in STARTS:
        given = {**base, **measured}
        case = Case(check="start", ask="init", inputs=given, **(about | dict(roles=roles)))
        yield _start(case, STARTS[cls.name])
    spec = spec_named(cls.name)
    if spec and spec.on_layer and spec.keys and place.name == "linear" and "m_emb" not in arrays:
        yield from files_of(spec, method, inputs, {**start, **{k: arrays[k] for k in trained_of(about)}}, about)


STARTS = {"dora": "m", "eva": "A_rows", "lora_ga": "BA", "pissa": "BA"}  # what is not drawn at random


def _start(case: Case, name: str) -> Case:
    """The arrays as training starts, where they are computed: what does not depend on the signs of singular vectors."""

    def told(case: Case) -> np.ndarray:
        found = OWN.init(case)
        return found[name] if name in found else files.derived(name, found)

    done = dataclasses.replace(case, want={name: told(case)}, cond=conditions(case, lambda c: {name: told(c)}))
    if name != "m":  # made of a singular value decomposition
        about: Arrays = dict(tolerance="SUBSPACE", variant="in_norm", since="0.2")
        done = dataclasses.replace(done, cond={name: in_norm(case, told)}, **about)
    _agree(done, {name: _by_eigenvectors(case)}, "eigenvectors")
    return dataclasses.replace(
        done, witnesses=("the method's own file, in float64", "eigenvectors of the products, or sums of squares")
    )


def in_norm(case: Case, told: Callable[[Case], np.ndarray]) -> float:
    """How far the largest element moves for a change of the decomposed matrix M by ‖M‖, in whichever direction moves it most.

    A singular value decomposition is exact for a matrix nearby, ‖E‖ ≤ p u ‖M‖ with a small p: its error is relative to the
    norm and not to each element, and no few random changes find the direction that matters, that of a small gap. So the
    derivative by every element of M is measured, by central differences; a row of it has the length sought.
    """
    name = decomposed_of(case)
    M, step = case.inputs[name], 2.0**-20 * float(np.linalg.norm(case.inputs[name]))

    def at(change: np.ndarray) -> np.ndarray:
        return told(dataclasses.replace(case, inputs={**case.inputs, name: M + step * change.reshape(M.shape)}))

    slopes = np.array([(at(e) - at(-e)) / (2 * step) for e in np.eye(M.size)])
    return float(np.linalg.norm(slopes, axis=0).max() * np.linalg.norm(M))


def decomposed_of(case: Case) -> str:
    """The matrix that training starts from: data, a gradient, or the weight."""
    return next(k for k in ("X", "G", "W") if k in case.inputs)


def _by_eigenvectors(case: Case) -> np.ndarray:
    """The same without a singular value decomposition."""
    t, m = case.inputs, OWN.method(case)
    M = t["X"] - t["X"].mean(axis=0) if "X" in t else t[decomposed_of(case)]
    if case.method == "dora":
        return np.sqrt(np.einsum("oi,oi->o", M, M))
    largest, V = np.linalg.eigh(M.T @ M)
    V, r = V[:, ::-1], m.r  # type: ignore[attr-defined]
    if case.method == "eva":
        return V[:, :r] @ V[:, :r].T
    if case.method == "pissa":  # s B A is the part of W along its first r directions
        return M @ V[:, :r] @ V[:, :r].T / m.scale  # type: ignore[attr-defined]
    J = V[:, r : 2 * r]  # B has the left vectors of the second r triples, A the right ones of the first
    U = M @ J / np.sqrt(largest[::-1][r : 2 * r])
    top = V[:, :r]
    sign = np.sign(top[abs(top).argmax(axis=0), range(r)]) * np.sign(J[abs(J).argmax(axis=0), range(r)])
    return (len(M) ** 0.5 / m.gamma) * (U * sign) @ top.T  # type: ignore[attr-defined]


def trained_of(about: Arrays) -> list[str]:
    return [k for k, r in about["roles"].items() if r == "array"]


# --- a table, sums of adapters, bfloat16 ------------------------------------------------------------------------------


def combined(name: str) -> bool:
    """Whether libraries put the method on tables, sum it, and merge it into weights of half precision."""
    spec = spec_named(name)
    return spec is not None and spec.combined


def on_a_table(cls: type[Method], method: Method, page: docstrings.Page) -> Iterator[Case]:
    """The method on a token table: outputs, gradients."""
    rng, place = generator(cls.name, "embedding"), places.PLACES["table"]
    inputs, _, arrays, about = drawn(cls, "forward", method, page, place, rng)
    forward = finished(Case(check="embedding", ask="forward", inputs={**inputs, **arrays}, **about))
    yield forward
    g = {f"g.{k}": single(rng.standard_normal(v.shape)) for k, v in forward.want.items()}
    about |= dict(variant="grad", roles=about["roles"] | dict.fromkeys(g, "cotangent"))
    yield finished(Case(check="embedding", ask="vjp", inputs={**inputs, **arrays, **g}, **about))


def sums(
    cls: type[Method], method: Any, inputs: Arrays, arrays: Arrays, about: Arrays, rng: np.random.Generator
) -> Iterator[Case]:
    """One adapter with weight 1, which must be that adapter; and two of different rank and scale, with other weights."""
    other = dataclasses.replace(method, r=3, alpha=7.0)
    fresh, trained = arrays_at(places.PLACES["linear"], other, rng, inputs)
    second = moved(fresh, trained, rng)
    one, two = ({f"{k}.{i}": v for k, v in a.items()} for i, a in enumerate((arrays, second)))
    given = {k: "base" if k in ("W", "b") else "input" for k in inputs}
    for kind, members, weights, chosen in (
        ("identity", one, [1.0], [method]), ("two", one | two, [0.75, -1.25], [method, other]),
    ):  # fmt: skip
        variant = kind if about["variant"] == "usual" else f"{kind}-{about['variant']}"
        told = about | dict(
            variant=variant, roles=given | dict.fromkeys(members, "array"), inputs={**inputs, **members},
            options=dict(weights=weights, adapters=[config_of(m) for m in chosen]),
        )  # fmt: skip
        yield finished(Case(check="combine", ask="combine", **told))


def in_bfloat16(inputs: Arrays, arrays: Arrays, about: Arrays) -> Iterator[Case]:
    """Merging into a weight of bfloat16, and back; the adapter in bfloat16 too, or in float32."""
    for variant, also in (("usual", {k: files.bfloat16(v) for k, v in arrays.items()}), ("adapter_in_float32", arrays)):
        given = {k: files.bfloat16(v) for k, v in inputs.items()} | also
        told = about | dict(
            variant=variant, inputs=given, options=dict(adapter="bfloat16" if variant == "usual" else "float32")
        )
        merged = finished(Case(check="merge_bfloat16", ask="merge_bfloat16", **told))
        yield dataclasses.replace(merged, tolerance="ROUND1")
        base = {k: given[k] for k in ("W", "b")}
        yield dataclasses.replace(
            Case(check="unmerge_bfloat16", ask="unmerge_bfloat16", **told), tolerance="EXACT", want=base,
            cond=dict.fromkeys(base, 0.0), witnesses=("the base", "the definition"),
        )  # fmt: skip


# --- files of adapters ------------------------------------------------------------------------------------------------


def files_of(spec: Spec, method: Method, inputs: Arrays, arrays: Arrays, about: Arrays) -> Iterator[Case]:
    """An adapter as PEFT writes it, for a model whose one linear is named `layer`; and files that must be refused."""
    from safetensors.numpy import save

    site = "layer.weight"
    trained = frozenset(f"{site}:{k}" for k in trained_of(about))
    adapter = Adapter("case", method, {site: method}, {f"{site}:{k}": v for k, v in arrays.items()}, trained)
    config = layer.config_of(spec, method) | dict(inference_mode=True)
    held = spec.plain(None, adapter)  # type: ignore[arg-type]
    written = {*spec.keys, *spec.root_keys}
    arrays = {k: single(v) if k in written else v for k, v in held.grouped()[site].items()}
    tensors = {k: a.astype(np.float32) if a.dtype.kind == "f" else a for k, a in layer.tensors_of(spec, arrays).items()}
    want = places.PLACES["linear"].call(held.method, inputs, arrays)
    roles = {k: r for k, r in about["roles"].items() if k in inputs}

    def case(variant: str, tensors: Arrays, config: Arrays = config, **more: Any) -> Case:
        files = {
            "adapter_model.safetensors": save(tensors, {"format": "pt"}),
            "adapter_config.json": files_json(config),
        }
        made = about | dict(variant=variant, roles=roles, inputs=inputs, files=files)
        return Case(**(dict(check="load", ask="load") | made | more))

    plain = case("plain", tensors, want={"y": want["y"]}, cond={})
    cond = conditions(
        dataclasses.replace(plain, ask="forward", inputs={**inputs, **adapter.grouped()[site]}, roles=about["roles"])
    )
    yield dataclasses.replace(
        plain, cond=cond, witnesses=("the outputs of the arrays that the files hold", "the keys that PEFT writes"),
    )  # fmt: skip
    first = next(k for k in sorted(tensors) if k.startswith(layer.MODULE) and tensors[k].dtype.kind == "f")
    told: Arrays = dict(
        tolerance="REJECT", witnesses=("the rule that a file must fit", "the shapes of the method's table")
    )
    for variant, changed in spec.variants(config).items():
        done = dataclasses.replace(
            plain,
            cond=cond,
            witnesses=("the outputs of the arrays that the files hold", f"the case without {variant}s"),
        )
        yield dataclasses.replace(done, variant=variant, files=case(variant, tensors, config | changed).files)
    yield case("missing", {k: v for k, v in tensors.items() if k != first}, flags=("silent missing keys",), **told)
    yield case(
        "unexpected",
        tensors | {layer.MODULE + "lora_Q.weight": tensors[first]},
        flags=("unknown keys are dropped",),
        **told,
    )
    short = np.ascontiguousarray(tensors[first][:-1]) if tensors[first].shape[0] > 1 else tensors[first][:, :-1].copy()
    yield case("misshaped", tensors | {first: short}, flags=("shapes are not checked",), **told)
    other = {k.replace(".layer.", ".another."): v for k, v in tensors.items()}
    yield case("wrong_adapter", other, flags=("an adapter of another model loads silently",), **told)


def files_json(config: Arrays) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


# --- the tiny tier ----------------------------------------------------------------------------------------------------


def tiny() -> dict[str, Any]:
    """A few cases of a handful of numbers each, as plain JSON with C99 hexadecimal floats."""
    made = []
    settings: tuple[tuple[str, Arrays, Arrays], ...] = (
        ("lora", dict(r=2, alpha=3.0), dict(A=(2, 3), B=(2, 2))),
        ("lora", dict(r=2, alpha=3.0, rslora=True), dict(A=(2, 3), B=(2, 2))),
        ("dora", dict(r=1, alpha=3.0), dict(A=(1, 3), B=(2, 1), m=(2,))),
        ("ia3", {}, dict(l=(2,))),
        ("loha", dict(r=2, alpha=5.0), dict(X1=(2, 2), Y1=(2, 3), X2=(2, 2), Y2=(2, 3))),
    )
    for name, fields, shapes in settings:
        rng = generator("tiny", name, *fields)
        method = METHODS[name](**fields)
        arrays = {k: single(rng.standard_normal(tuple(v))) for k, v in shapes.items()}
        inputs = dict(
            x=single(rng.standard_normal((1, 2, 3))),
            W=single(rng.standard_normal((2, 3))),
            b=single(rng.standard_normal(2)),
        )
        roles = dict(x="input", W="base", b="base") | dict.fromkeys(arrays, "array")
        variant = "rslora" if fields.get("rslora") else "plain"
        about: Arrays = dict(method=name, variant=variant, config=config_of(method))
        g = {"g.y": single(rng.standard_normal((1, 2, 2)))}
        made.append(finished(Case(check="forward", ask="forward", inputs={**inputs, **arrays}, roles=roles, **about)))
        made.append(
            finished(
                Case(
                    check="grad",
                    ask="vjp",
                    inputs={**inputs, **arrays, **g},
                    roles=roles | {"g.y": "cotangent"},
                    **about,
                )
            )
        )

    def told(a: np.ndarray, **more: Any) -> dict[str, Any]:
        return dict(shape=list(a.shape), values=[float(v).hex() for v in a.ravel()], **more)

    listed = [
        dict(
            id=f"tiny.{c.id}", ask=c.ask, method=c.method, config=dict(c.config), K=c.k,
            tensors={k: told(v, role=c.roles[k]) for k, v in c.inputs.items()},
            want={k: told(v, cond=c.cond[k]) for k, v in c.want.items()},
        )
        for c in made
    ]  # fmt: skip
    return dict(format=files.FORMAT, cases=listed)


def same_tiny(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two recordings of the tiny tier differ in nothing but rounding in another order."""

    def told(tier: Mapping[str, Any]) -> Any:
        return {**tier, "cases": [{**c, "want": {k: v["shape"] for k, v in c["want"].items()}} for c in tier["cases"]]}

    return told(one) == told(other) and all(
        abs(float.fromhex(a) - float.fromhex(b)) <= 8 * 2.0**-53 * want["cond"]
        for c, d in zip(one["cases"], other["cases"], strict=True)
        for name, want in c["want"].items()
        for a, b in zip(want["values"], d["want"][name]["values"], strict=True)
    )


# --- lint -------------------------------------------------------------------------------------------------------------


def lint(case: Case) -> list[str]:
    """What makes a case too kind: sizes that are equal, zeros and ones, results that do not depend on the arrays."""
    said = []
    if len({B, T, IN, OUT, WORDS}) < 5:
        said.append("sizes are equal")
    for k, v in case.inputs.items():
        if v.dtype.kind != "f" or case.roles[k] in ("stored",):
            continue
        if not v.any():
            said.append(f"{k} is zero")
        if v.size > 1 and (v == v.flat[0]).all():
            said.append(f"{k} is constant")
        if not (single(v) == v).all():
            said.append(f"{k} is not exact in float32")
    if case.tolerance == "COND" and case.ask in ("forward", "vjp", "delta"):
        said += [f"{k} is zero everywhere" for k, v in case.want.items() if not v.any()]
    scale = getattr(decode({"method": case.method, **case.config}), "scale", 3.0)
    if isinstance(scale, float) and scale in (0.0, 1.0):
        said.append(f"the scale is {scale}")
    if len(case.witnesses) < 2:
        said.append("it has fewer than two witnesses")
    return [f"{case.id}: {s}" for s in said]


def record(names: list[str] | None = None) -> list[Case]:
    """All cases of all methods, or of some. Raises `Bad` where a witness disagrees or a case is degenerate."""
    load_methods()
    chosen = names or sorted(n for n, c in METHODS.items() if c.__module__.startswith("minipeft."))
    made = [case for name in chosen for case in of_method(METHODS[name])]
    if problems := [p for case in made for p in lint(case)]:
        raise Bad("; ".join(problems[:5]))
    return made


def main(argv: list[str]) -> None:
    """Record everything into a folder, by default the one that is shipped."""
    folder = Path(argv[0]) if argv else files.SHIPPED
    made = record()
    files.write(made, folder)
    few, path = tiny(), folder / "tiny.json"
    if not (path.exists() and same_tiny(json.loads(path.read_text(encoding="utf-8")), few)):
        path.write_text(json.dumps(few, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"{folder}: {len(made)} cases of {len({c.method for c in made})} methods, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
