"""Mistakes that nobody listed: what would come out if an array, a gradient or one expression of the text were otherwise.

A supposed mistake is an implementation that answers as every other. Of some a number is left open, and is found from what came out:
then it is named by the settings and sizes that it equals, so that one mistake has one name in cases of other settings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.conformance import acting
from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays
from minipeft.conformance.own import Own, method_of
from minipeft.engine import ops
from minipeft.engine.tensor import stop_gradient, value

STEPS = 12  # of the search for a number
NEAR = 1e-11  # of the largest: what a number that is found may leave
PLAIN = (2.0, 0.5, -1.0, 0.0, 1.0)  # numbers that are told as they are


@dataclass(frozen=True, eq=False)
class Supposed:
    """A mistake in words, with a {} where a number is open. `made(number)` answers; `around(number)` is entered while it does."""

    words: str
    made: Callable[[float], Own]
    neutral: float | None = None  # the number that makes no difference; None: there is no number
    near: float = 1.5  # where the search begins
    around: Callable[[float], AbstractContextManager[Any]] = lambda number: nullcontext()

    def answer(self, case: Case, number: float = 0.0) -> Arrays | None:
        """What is computed so, None where nothing is."""
        try:
            with self.around(number), np.errstate(all="ignore"):
                found = {k: np.asarray(v) for k, v in getattr(self.made(number), case.ask)(case).items()}
            return found if all(v.dtype.kind in "fiu" for v in found.values()) else None
        except Exception:  # what cannot be computed is no mistake that somebody made
            return None


# --- numbers ----------------------------------------------------------------------------------------------------------


def quantities(case: Case) -> dict[str, float]:
    """Numbers that a case has, by name: settings, sizes, and what is made of one of them."""
    method = method_of(case)
    own = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    scale = getattr(method, "scale", None)
    if scale is None and {"alpha", "r"} <= own.keys():
        scale = own["alpha"] / own["r"]
    beside = {}
    if isinstance(scale, float) and scale:
        own = {"the scale": scale} | own
        beside = {"alpha/the scale": own["alpha"] / scale} if "alpha" in own else {}
    own |= dict(case.options.get("optimiser", {}))
    W = case.inputs.get("W")
    if W is not None and W.ndim == 2:
        sizes = dict(zip(("outputs", "inputs"), W.shape))
        beside |= {
            f"{size}/{k}": n / q for size, n in sizes.items() for k, q in own.items() if type(q) is int and q > 1
        }
        own |= sizes
        own |= {"outputs · inputs": W.size}
    if "x" in case.inputs:
        own |= {"rows": case.inputs["x"].shape[0]}
    out = dict(beside)
    for name, q in own.items():
        if isinstance(q, bool) or not isinstance(q, int | float) or q in (0, 1):
            continue
        out |= {name: float(q), f"1/{name}": 1 / q, f"1 − {name}": 1 - q, f"{name}²": q * q, f"−{name}": -q}
        out |= {f"1/(1 − {name})": 1 / (1 - q), f"{name} − 1": q - 1}
        out |= {f"√{name}": math.sqrt(q), f"1/√{name}": 1 / math.sqrt(q)} if q > 0 else {}
    return out


def called(case: Case, number: float) -> Iterator[tuple[str, Callable[[Case], float | None]]]:
    """What a number may be called, and what is called so in other cases: a plain number, what it equals here, else its digits."""

    def like(x: float) -> bool:
        return abs(number - x) <= max(1e-7 * abs(x), 1e-9 * (x == 0))

    plain = [x for x in PLAIN if like(x)]
    for x in plain:
        yield f"{x:g}", lambda case, x=x: x  # type: ignore[misc]
    named = [name for name, x in quantities(case).items() if like(x)]
    for name in named:
        yield name, lambda case, name=name: quantities(case).get(name)  # type: ignore[misc]
    if not plain and not named:
        short = float(f"{number:.7g}")
        exact = short if abs(short - number) <= 1e-6 * abs(number) else number
        yield f"{number:.7g}", lambda case: exact


def solved(case: Case, got: Mapping[str, Any], it: Supposed) -> float | None:
    """The number with which a supposed mistake gives nearly what came out, None if none does."""
    size = {k: max(float(abs(v).max(initial=0)), 1e-300) for k, v in case.want.items()}

    def line(found: Mapping[str, Any]) -> Any:
        return np.concatenate([np.ravel(found[k]) / size[k] for k in size])

    def at(number: float) -> Any:
        found: Any = it.answer(case, number)
        if found is None or any(k not in found or found[k].shape != v.shape for k, v in case.want.items()):
            return None
        return line(found)

    assert it.neutral is not None
    a, b = it.neutral, it.near
    fa, fb, aim, best, nearest = line(case.want), at(b), line(got), np.inf, b
    for step in range(STEPS):
        if fb is None or not np.isfinite(fb).all():
            break
        way, left = fb - fa, aim - fa
        length, off = float(way @ way), float(np.sqrt(left @ left))
        if not length or not off:
            break
        if step == 0 and abs(float(way @ left)) < 0.7 * np.sqrt(length) * off:
            break  # it leads elsewhere
        new = a + (b - a) * float(way @ left) / length
        if not np.isfinite(new) or abs(new) > 1e12:
            break
        last = float(abs(aim - fb).max())
        if last >= best / 2 and (best <= NEAR or step > 4):  # it comes no nearer
            break
        if last < best:
            best, nearest = last, b
        a, fa, b = b, fb, new
        fb = at(b)
    return nearest if best <= NEAR else None


# --- arrays, inputs, gradients ----------------------------------------------------------------------------------------


class Given(Own):
    """Takes what it is given otherwise: `change` of all inputs and arrays by name."""

    def __init__(self, change: Callable[[Arrays], Arrays]) -> None:
        self.change = change

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        made = self.change({**inputs, **arrays})
        return super().outputs(case, {k: made[k] for k in inputs}, {k: made[k] for k in arrays})

    def merge(self, case: Case) -> Arrays:
        own = case.named("base", "array", "stored")
        made = {k: value(v) for k, v in self.change(dict(own)).items()}
        return super().merge(dataclasses.replace(case, inputs={**case.inputs, **made}))


class Changed(Own):
    """The adapter's part of a linear's or a table's output, so many times."""

    def __init__(self, number: float) -> None:
        self.number = number

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        y = super().outputs(case, inputs, arrays)["y"]
        if case.place == "table":
            base = ops.take(inputs["W"], ids=inputs["ids"])
        elif "W" in inputs and "x" in inputs and case.place != "norm":
            base = ops.linear(inputs["x"], acting.held(self.method(case), inputs["W"]), inputs["b"])
        else:
            raise ValueError("no linear")
        return dict(y=base + self.number * (y - base))

    def merge(self, case: Case) -> Arrays:
        base, merged = case.named("base"), super().merge(case)
        return {k: base[k] + self.number * (v - base[k]) if k in base else v for k, v in merged.items()}


def of_arrays(case: Case) -> Iterator[Supposed]:
    """What may be otherwise with what a case gives: arrays exchanged, left out, turned, read from the other end; their gradients."""
    roles = ("input", "base", "array", "stored")
    floats = sorted(k for k, v in case.inputs.items() if v.dtype.kind == "f" and case.roles[k] in roles)
    moved = [k for k in floats if case.roles[k] in ("input", "array") and k != "keep"]

    def given(words: str, name: str, change: Callable[[Any], Any]) -> Supposed:
        return Supposed(words, lambda number: Given(lambda a: a | {name: change(a[name])} if name in a else a))

    for i, k in enumerate(floats):
        for other in floats[i + 1 :]:
            if case.inputs[k].shape == case.inputs[other].shape:

                def exchanged(a: Arrays, k: str = k, other: str = other) -> Arrays:
                    return a | {k: a[other], other: a[k]}

                yield Supposed(f"{k} and {other} exchanged", lambda number, f=exchanged: Given(f))  # type: ignore[misc]
    for k in floats:
        shape = case.inputs[k].shape
        yield given(f"{k} is taken to be 1", k, lambda v: 0.0 * v + 1.0)
        yield given(f"{k} is taken to be 0", k, lambda v: 0.0 * v)
        if len(shape) > 1 and shape[-1] == shape[-2] > 1:
            yield given(f"{k} is transposed", k, lambda v: ops.swapaxes(v))
        for axis, n in enumerate(shape):
            if n > 1:
                at = (slice(None),) * axis + (slice(None, None, -1),)
                yield given(f"axis {axis} of {k} is read from its end", k, lambda v, at=at: v[at])  # type: ignore[misc]
        if len(shape) > 1 and min(shape[-2:]) > 1 and shape[-1] != shape[-2]:
            yield given(f"{k} is read column by column", k, lambda v: ops.reshape(ops.swapaxes(v), shape=v.shape))
    yield Supposed("the change is {} times what it is", Changed, neutral=1.0)
    for k in moved if case.ask in ("vjp", "train", "fit") else ():

        def slope(number: float, k: str = k) -> Own:
            return Given(lambda a: a | {k: number * a[k] + stop_gradient((1 - number) * a[k])})

        yield Supposed(f"the gradient of {k} is {{}} times what it is", slope, neutral=1.0)
    for k in floats:
        if k != "keep":
            for words, neutral, near, by in ((f"{k} is {{}} times what it is", 1.0, 1.5, ops.mul), (f"{k} has {{}} added", 0.0, 1e-3, ops.add)):  # fmt: skip

                def numbered(number: float, k: str = k, by: Any = by) -> Own:
                    return Given(lambda a: a | {k: by(a[k], number)} if k in a else a)

                yield Supposed(words, numbered, neutral, near)
