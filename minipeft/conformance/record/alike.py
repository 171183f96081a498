"""What is expected of a case, turned over: transposed, permuted by blocks and by rows, conjugated, of the other sign.

A wrong equation often gives one of these. Where it is the same numbers, the case would be passed by that equation too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import gcd

import numpy as np

from minipeft.arrays import array_of
from minipeft.conformance.cases import Case
from minipeft.conformance.judge import UNIT
from minipeft.method import METHODS

ASKS = ("forward", "vjp", "delta", "merge")
Turn = Callable[[int, int], np.ndarray]  # (n, b): the order of n indices in blocks of b


def _moved(n: int, b: int) -> np.ndarray:
    """One further in every block, the last of which comes first."""
    return (np.arange(n) // b) * b + (np.arange(n) - 1) % b


def _blocks_moved(n: int, b: int) -> np.ndarray:
    """Every block in the place of the next."""
    return (np.arange(n) - b) % n


def _in_turn(n: int, b: int) -> np.ndarray:
    """The first of every block, then the second of every block."""
    return np.arange(n).reshape(-1, b).T.ravel()


def _conjugated(n: int, b: int) -> np.ndarray:
    """k in the place of −k in every block: what conjugation does to the inverse of a Fourier transform."""
    return (np.arange(n) // b) * b + -np.arange(n) % b


def _reversed(n: int, b: int) -> np.ndarray:
    """Every block from its end."""
    return (np.arange(n) // b) * b + b - 1 - np.arange(n) % b


ORDERS: dict[str, Turn] = {
    "moved by one within blocks": _moved, "moved by blocks": _blocks_moved, "taken in turn from blocks": _in_turn,
    "conjugated within blocks": _conjugated, "reversed within blocks": _reversed,
}  # fmt: skip


def _divisors(n: int) -> list[int]:
    return [b for b in range(2, n + 1) if n % b == 0]


def turned_over(a: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(how, what an array is then), for every way of its last two axes that keeps its shape, in blocks of every size that fits."""
    yield "of the other sign", -a
    n = a.shape[-1] if a.ndim else 1
    for axis, what in ((-1, "columns"), (-2, "rows"))[: min(a.ndim, 2)]:
        for b in _divisors(a.shape[axis]):
            for how, order in ORDERS.items():
                at = order(a.shape[axis], b)
                if (at != np.arange(len(at))).any():
                    yield f"{what} {how}", np.take(a, at, axis=axis)
    for b in _divisors(int(np.gcd(a.shape[-2], n))) if a.ndim > 1 else ():
        rows, columns = (_conjugated(size, b) for size in a.shape[-2:])
        if b > 2:
            yield "conjugated within blocks", a[..., rows[:, None], columns]
        parts = a.reshape(*a.shape[:-2], a.shape[-2] // b, b, n // b, b)
        yield "transposed within blocks", np.swapaxes(parts, -1, -3).reshape(a.shape)
    if a.ndim > 1 and a.shape[-2] == n > 1:
        yield "transposed", np.swapaxes(a, -1, -2)


def alike(case: Case) -> dict[str, bool]:
    """Whether an array that is wanted, turned over, would pass: {"delta transposed within blocks": True}, of blocks of some size."""
    found: dict[str, bool] = {}
    for name, want in case.want.items() if case.tolerance == "COND" and case.ask in ASKS else ():
        bound = case.k * UNIT[np.dtype(np.float64)] * case.cond[name]
        for how, a in turned_over(want):
            way = f"{name} {how}"
            found[way] = found.get(way, False) or bool((abs(a - want) <= bound).all())
    return found


def indistinct(cases: Sequence[Case]) -> list[str]:
    """What all cases of a method leave open: ways to turn over what is wanted, letters that are always 1, shapes that they lack.

    `ALIKE` in the file of a method's mutants says why that is so, where it is so of the method: {why: what}.
    """
    cls = METHODS[cases[0].method]
    passed: dict[tuple[str, str], list[bool]] = {}
    sizes: dict[str, set[int]] = {}
    for case in cases:
        for way, passes in alike(case).items():
            passed.setdefault((case.ask, way), []).append(passes)
        for name in (k for k, role in case.roles.items() if role in ("array", "stored") and case.ask == "forward"):
            it = array_of(cls, name)
            for letter, n in zip(it.shape if it and it.shape != (...,) else (), case.inputs[name].shape):
                if not str(letter).isdigit():
                    sizes.setdefault(f"{name} with {letter} = 1", set()).add(n)
    said = [f"{ask}: {way}" for (ask, way), each in passed.items() if all(each)]
    said += [what for what, found in sizes.items() if found == {1}]
    if _without_sign(cases):
        said.append("delta: a block of the other sign")
    shapes = {shape for case in cases if (shape := shape_of(case))}
    what = "weight" if any(len(shape) > 1 for shape in shapes) else "result"
    if len(shapes) < 2:
        said.append(f"{what}s of {len(shapes)} shape alone")
    elif not any(gcd(*shape) >= 4 if len(shape) > 1 else shape[0] % 4 == 0 for shape in shapes):
        said.append(f"no {what} in which blocks of four fit" + (" both ways" if what == "weight" else ""))
    return said


def shape_of(case: Case) -> tuple[int, ...]:
    """What a case tells blocks by: the shape of its weight, else the width of its outputs; nothing of one that has neither."""
    W = case.inputs.get("W")
    if W is not None and case.roles["W"] == "base" and W.ndim == 2 and case.place != "table":
        return W.shape
    widths = [a.shape[-1] for a in case.want.values() if a.ndim and case.ask == "forward"]
    return (widths[0],) if widths else ()


def _without_sign(cases: Sequence[Case]) -> bool:
    """Whether two by two neighbours of the change are 0 in every case that has them: of these any sign would pass."""
    changes = [
        (abs(c.want["delta"]) <= c.k * UNIT[np.dtype(np.float64)] * c.cond["delta"]) for c in cases if c.ask == "delta"
    ]
    if not changes:
        return False
    zero = np.ones(np.max([z.shape for z in changes], axis=0), bool)
    there = np.zeros_like(zero)
    for z in changes:
        zero[: z.shape[0], : z.shape[1]] &= z
        there[: z.shape[0], : z.shape[1]] = True
    open_ = zero & there
    return bool((open_[1:, 1:] & open_[:-1, 1:] & open_[1:, :-1] & open_[:-1, :-1]).any())
