"""One case: its inputs, what is wanted, how sensitive that is, and the witnesses that agree with it."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minipeft.conformance import acting
from minipeft.conformance.acting import bias_of
from minipeft.conformance.cases import Case
from minipeft.conformance.own import Own
from minipeft.conformance.places import WORDS, Arrays, Place
from minipeft.conformance.record.steps import slopes, trained
from minipeft.conformance.witnesses import closed_form, dropped_form, removed_by
from minipeft.engine import gradients_flow
from minipeft.errors import Bad
from minipeft.interop.peft.registry import spec_named
from minipeft.method import is_weight, ties, weight_of

OWN = Own()
STEP = 1e-5  # of central differences


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
        elif name == "input_ids":
            out[name] = np.array([[2, 5, 2, 5], [7, 2, 5, 1], [5, 2, 3, 2]])  # what is sought twice, once, and never
        elif name == "task_ids":
            out[name] = np.arange(shape[0]) % method.n_tasks
        elif name in ("mask", "position_ids"):
            out[name] = padded(out["ids"])[name]
        else:
            out[name] = single(rng.standard_normal(shape) * (shape[-1] ** -0.5 if name[0] == "W" else 1.0))
    return out


def padded(ids: np.ndarray, left: bool = False) -> Arrays:
    """The mask, positions and labels of texts of several lengths: one without padding, others with one token of it and more.

    One label is passed over; where padding is on the left, so is a text's first token, which nothing but padding could predict.
    """
    lengths = [ids.shape[1], *range(ids.shape[1] - 2, ids.shape[1] + len(ids) - 3)]
    mask = np.array([[int(at < n) for at in range(ids.shape[1])] for n in lengths])
    mask = mask[:, ::-1].copy() if left else mask
    labels = np.where(mask, ids, -100)
    labels[0, 2] = -100
    if left:
        labels[np.arange(len(ids)), mask.argmax(axis=1)] = -100
    return dict(mask=mask, position_ids=np.maximum(np.cumsum(mask, axis=1) - 1, 0), labels=labels)


def moved(arrays: Arrays, trained: tuple[str, ...], rng: np.random.Generator) -> Arrays:
    """Arrays in training: those that start at 0 or 1 have left it; adapters that a method is built over are trained too."""

    def noise(v: np.ndarray) -> np.ndarray:
        return (0.4 if v.ndim < 2 else 0.9 * v.shape[-1] ** -0.5) * rng.standard_normal(v.shape)

    return {k: single(v + noise(v)) if k in trained else v for k, v in arrays.items()}


def combined(name: str) -> bool:
    """Whether libraries put the method on tables, sum it, and merge it into weights of half precision."""
    spec = spec_named(name)
    return spec is not None and spec.combined


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


def slope(case: Case, name: str, gradient: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The derivative of Σ g·output by one input along a random direction: by central differences, and by the gradient."""
    direction = rng.standard_normal(case.inputs[name].shape)

    def at(by: float) -> float:
        moved = dataclasses.replace(case, inputs={**case.inputs, name: case.inputs[name] + by * direction})
        out = OWN.forward(moved)
        return sum(float((out[k] * case.inputs[f"g.{k}"]).sum()) for k in out)

    return (at(STEP) - at(-STEP)) / (2 * STEP), float((gradient * direction).sum())


def finished(case: Case) -> Case:
    """The case with what is wanted, after its witnesses have agreed."""
    want = answer(case)
    if case.ask == "vjp":  # what the outputs do not depend on, but for rounding, is not asked for
        largest = max(float(abs(v).max()) for v in want.values())
        want = {k: v for k, v in want.items() if abs(v).max() > 1e-12 * largest}
    if case.ask == "fit":  # AdamW makes steps of roundings, where a gradient is no more than these
        sizes = {k: float(abs(v).max(initial=0)) for k, v in slopes(case, case.named("array")).items()}
        residual = {"W"} if "A0" in case.inputs else set()  # who trains over a residual base may hold that
        lost = {k for k, v in sizes.items() if v <= 1e-12 * max(sizes.values())} | residual
        want = {k: v for k, v in want.items() if k not in lost}
    cond = conditions(case)
    done = dataclasses.replace(case, want={k: want[k] for k in sorted(want)}, cond={k: cond.get(k, 0.0) for k in want})
    return dataclasses.replace(done, witnesses=witnesses(done))


def witnesses(case: Case) -> tuple[str, ...]:
    """Who agrees with what is wanted. Raises `Bad` if one does not."""
    found = ["the method's own file, in float64"]
    if case.ask == "forward":
        arrays = case.named("array", "stored")
        method = OWN.method(case)
        if case.check == "embedding":
            W = OWN.merge(case)["W"]
            agree(case, dict(y=W[case.inputs["ids"]]), "merged table")
            found.append("rows of the merged table")
            if "h" in case.inputs:
                agree(case, dict(z=case.inputs["h"] @ (W if ties(method) else case.inputs["W"]).T), "head")
                found.append("the head by that table, or by the base's")
        elif form := closed_form(case.method):
            given = {**case.named("input", "base"), **arrays}
            closed = form(method, given)
            if "keep" in given:  # the change of the kept input, beside the base's output for all of it
                x, kept = given["x"], given["x"] * given["keep"] / (1 - method.dropout)  # type: ignore[attr-defined]
                W = acting.held(method, given["W"])
                if "A0" in given:  # a residual base
                    W = W - removed_by(case.method)(method, given)
                if dropped := dropped_form(case.method):
                    closed = dropped(method, given | {"kept": kept})
                else:
                    closed = dict(y=x @ W.T + form(method, given | {"x": kept})["y"] - kept @ W.T)
            agree(case, closed, "closed form")
            found.append("a closed form written apart, number by number")
        if is_weight(method) and case.place in ("linear", "feedforward") and "keep" not in case.inputs:
            merged = OWN.merge(case)
            b = merged.get("b", 0.0)
            agree(case, dict(y=case.tensors["x"] @ merged["W"].T + b), "merged weight")
            found.append("the merged weight")
    elif case.ask == "vjp":
        rng = generator(case.id, "slope")
        with gradients_flow():  # what is held constant lets its gradient through, as differences do
            flowing = answer(case)
        held = {k for k, v in case.want.items() if abs(v - flowing[k]).max() > 1e-9 * abs(v).max()}
        largest = sum(float(abs(v * case.inputs[f"g.{k}"]).sum()) for k, v in OWN.forward(case).items())
        for name in case.want:
            by_differences, by_gradient = slope(case, name, flowing[name], rng)
            rounding = 2.0**-50 * largest / STEP  # of a difference of sums of this size
            if not abs(by_differences - by_gradient) <= 1e-7 * max(abs(by_differences), case.cond[name]) + rounding:
                raise Bad(
                    f"{case.id}: the gradient of {name} is {by_gradient}, by central differences {by_differences}"
                )
        found.append(
            "central differences along a random direction" + (", but for what is held constant" if held else "")
        )
    elif case.ask == "combine":
        W, b = case.inputs["W"], case.inputs["b"]
        total = W.copy(), b.copy()
        for i, weight in enumerate(case.options["weights"]):
            member, own = OWN.adapter(case, i)
            total[0][:] += weight * (weight_of(member, W, own) - W)
            total[1][:] += weight * (bias_of(member, b, own, W) - b)
        agree(case, dict(y=case.inputs["x"] @ total[0].T + total[1]), "summed weights")
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
        agree(case, trained(case)[0], "optimiser")
    elif case.ask == "fit":
        found.append("the equations of the optimiser and of the method's training, written apart")
        agree(case, trained(case)[0], "training written apart")
    return tuple(found)


def agree(case: Case, other: Mapping[str, np.ndarray], what: str) -> None:
    """Raises `Bad` where a witness is not within half of the bound: a verdict must not turn on a processor's roundings."""
    for k, v in other.items():
        if k in case.want and not (abs(v - case.want[k]) <= case.k / 2 * 2.0**-53 * case.cond[k]).all():
            worst = float(abs(v - case.want[k]).max())
            raise Bad(f"{case.id}: {k} differs from the {what} by {worst}")
