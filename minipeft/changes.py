"""Changes of a weight with a structure: what a method's `change` returns where it is no plain matrix ΔW.

A linear multiplies by the factors, a table looks its rows up in them, and everything else sees the matrix: `onto(W)`.
Every change says so of a weight W (out, in), of its bias b (out), of a linear's output and of a table's rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minipeft.engine import ops
from minipeft.engine.backend import once, xp

Input = Callable[[Any], Any]  # what dropout makes of an input


def same_input(x: Any) -> Any:
    """No dropout."""
    return x


class Change:
    """W ↦ W'. A subclass says `onto(W)` at least: W' as a matrix."""

    __array_ufunc__ = None  # NumPy must not multiply or add it element by element
    onto: Callable[[Any], Any]

    def bias(self, b: Any) -> Any:
        """b', None for none."""
        return b

    def bias_over(self, b: Any, W: Callable[[], Any]) -> Any:
        """b' where it may depend on the weight too: W() is the weight under the change."""
        return self.bias(b)

    @property
    def steady(self) -> Sum:
        """The part that dropout leaves alone."""
        return Sum(())

    def linear(self, x: Any, base: Any, drop: Input = same_input) -> Any:
        """x W'ᵀ + b' over `base`, the linear as it is without the change; `drop` acts on the input of what is changed."""
        W = self.onto(base.W)
        if drop is same_input:
            return ops.linear(x, W, self.bias_over(base.b, lambda: base.W))
        y, still = base(x), base.W
        for t in self.steady.terms:
            y, still = t.add(y, x), t.added(still)
        y = y + ops.linear(drop(x), W - still)
        b, new = base.b, self.bias_over(base.b, lambda: base.W)
        if new is b:
            return y
        return y + (new if b is None else -b if new is None else new - b)

    def rows(self, ids: Any, base: Any) -> Any:
        """The rows `ids` of W'."""
        return ops.take(self.onto(base.W), ids=ids)


# --- sums -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LowRank:
    """s B A, with B (out, r) and A (r, in). What is `steady` is no part of what dropout acts on."""

    B: Any
    A: Any
    s: float = 1.0
    steady: bool = False
    wide: bool = False  # A has at least as many columns as W, which takes the first

    def over(self, in_: int) -> Any:
        """A for a weight of so many inputs."""
        return self.A[:, :in_] if self.wide else self.A

    def added(self, W: Any) -> Any:
        return W + self.s * (self.B @ self.over(W.shape[1]))

    def add(self, y: Any, x: Any) -> Any:
        return ops.add_lowrank(y, x, self.over(x.shape[-1]), self.B, s=self.s)

    def taken(self, ids: Any, width: int) -> Any:
        return self.s * (ops.take(self.B, ids=ids) @ self.over(width))


@dataclass(frozen=True, eq=False)
class Sum(Change):
    """ΔW = Σ s B A, and Δb. Sums and multiples of them are such changes too."""

    terms: tuple[LowRank, ...]
    shift: Any = None

    def onto(self, W: Any) -> Any:
        for t in self.terms:
            W = t.added(W)
        return W

    def bias(self, b: Any) -> Any:
        if self.shift is None:
            return b
        return self.shift if b is None else b + self.shift

    def linear(self, x: Any, base: Any, drop: Input = same_input) -> Any:
        terms = list(self.terms)
        if terms and base.plain and drop is same_input:
            first = terms.pop(0)
            y = ops.linear_lowrank(x, base.held, first.over(x.shape[-1]), first.B, base.b, s=first.s)
        else:
            y = base(x)
        for t in terms:
            y = t.add(y, x if t.steady else drop(x))
        return y if self.shift is None else y + self.shift

    def rows(self, ids: Any, base: Any) -> Any:
        y = base(ids)
        for t in self.terms:
            y = y + t.taken(ids, base.shape[1])
        return y

    @property
    def steady(self) -> Sum:
        return Sum(tuple(t for t in self.terms if t.steady))

    def __mul__(self, s: float) -> Sum:
        return Sum(tuple(replace(t, s=s * t.s) for t in self.terms), None if self.shift is None else s * self.shift)

    __rmul__ = __mul__

    def __neg__(self) -> Sum:
        return -1.0 * self

    def __add__(self, other: Sum) -> Sum:
        shifts = [s for s in (self.shift, other.shift) if s is not None]
        return Sum(self.terms + other.terms, sum(shifts[1:], shifts[0]) if shifts else None)

    def __sub__(self, other: Sum) -> Sum:
        return self + -other


def lowrank(B: Any, A: Any, wide: bool = False) -> Sum:
    """B A, with B (out, r) and A (r, in), never formed where a product with its factors will do.

    With `wide` A may have more columns than the weight has inputs: the first are meant.
    """
    return Sum((LowRank(B, A, wide=wide),))


def steady(change: Sum) -> Sum:
    """The same as a part of the base that dropout leaves alone: what was there before training."""
    return Sum(tuple(replace(t, steady=True) for t in change.terms), change.shift)


def shift(c: Any) -> Sum:
    """A change of the bias by c (out), of none by None."""
    return Sum((), c)


# --- others -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scaled(Change):
    """diag(l) W and diag(l) b, or W diag(l); fewer numbers than inputs are each for a run of them."""

    out: Any = None
    in_: Any = None

    def onto(self, W: Any) -> Any:
        W = W if self.out is None else W * self.out[:, None]
        return W if self.in_ is None else W * self._inputs(W.shape[1])

    def bias(self, b: Any) -> Any:
        return b if b is None or self.out is None else b * self.out

    def linear(self, x: Any, base: Any, drop: Input = same_input) -> Any:
        if drop is not same_input:
            return super().linear(x, base, drop)
        y = base(x if self.in_ is None else x * self._inputs(x.shape[-1]))
        return y if self.out is None else y * self.out

    def _inputs(self, width: int) -> Any:
        """(width,) the factor of every input."""
        n = self.in_.shape[0]
        if n == width:
            return self.in_
        return ops.reshape(ops.broadcast_to(self.in_[:, None], shape=(n, width // n)), shape=(width,))


def scaled(out: Any = None, in_: Any = None) -> Scaled:
    """Outputs, bias and all, times `out`; inputs, or runs of as many inputs, times `in_`."""
    return Scaled(out, in_)


@dataclass(frozen=True, eq=False)
class Rotated(Change):
    """W Rᵀ, and E R of a table, with R = diag(R_1, …, R_K) of blocks (K, β, β)."""

    R: Any
    table: bool = False

    def onto(self, W: Any) -> Any:
        return ops.block_matmul(W, self.R if self.table else ops.swapaxes(self.R))

    def linear(self, x: Any, base: Any, drop: Input = same_input) -> Any:
        if drop is not same_input:
            return super().linear(x, base, drop)
        return base(ops.block_matmul(x, ops.swapaxes(self.R) if self.table else self.R))

    def rows(self, ids: Any, base: Any) -> Any:
        return self.onto(base(ids))


def rotated(R: Any, table: bool = False) -> Rotated:
    """Inputs of a linear, or rows of a table, turned by the blocks R (K, β, β); one block stands for all."""
    return Rotated(R, table)


@dataclass(frozen=True, eq=False)
class Through(Change):
    """T W and T b, with T a linear map of outputs: `outputs(y)` is y Tᵀ, along the last axis."""

    outputs: Callable[[Any], Any]

    def onto(self, W: Any) -> Any:
        return ops.swapaxes(self.outputs(ops.swapaxes(W)))

    def bias(self, b: Any) -> Any:
        return b if b is None else self.outputs(b)

    def linear(self, x: Any, base: Any, drop: Input = same_input) -> Any:
        return self.outputs(base(x)) if drop is same_input else super().linear(x, base, drop)


def through(outputs: Callable[[Any], Any]) -> Through:
    """What a linear gives goes through a linear map, `outputs(y)` along the last axis; so does its bias."""
    return Through(outputs)


@dataclass(frozen=True, eq=False)
class Replaced(Change):
    """T (n, d) in place of the rows `ids` of W."""

    T: Any
    ids: tuple[int, ...]
    keeps_bias: bool = True

    def onto(self, W: Any) -> Any:
        place = _array(self.ids)
        new = xp.zeros(W.shape[0], bool)
        new[place] = True
        return ops.where(ops.put(self.T, index=place, shape=W.shape), W, condition=new[:, None])

    def bias(self, b: Any) -> Any:
        return b if self.keeps_bias else None

    def rows(self, ids: Any, base: Any) -> Any:
        place = xp.full(base.shape[0], -1)
        place[_array(self.ids)] = xp.arange(len(self.ids))
        place = place[ids]
        return ops.where(ops.take(self.T, ids=xp.maximum(place, 0)), base(ids), condition=(place >= 0)[..., None])


@once
def _array(ids: tuple[int, ...]) -> np.ndarray:
    return np.array(ids)


def replaced(T: Any, ids: tuple[int, ...], keeps_bias: bool = True) -> Replaced:
    """Rows `ids` of a table are those of T."""
    return Replaced(T, ids, keeps_bias)


@dataclass(frozen=True, eq=False)
class Swapped(Change):
    """W1 in place of W, and b1 of b."""

    W1: Any
    b1: Any = None

    def onto(self, W: Any) -> Any:
        return self.W1

    def bias(self, b: Any) -> Any:
        return b if self.b1 is None else self.b1


def swapped(W1: Any, b1: Any = None) -> Swapped:
    """Another weight in place of W, and another bias in place of b, if one is given."""
    return Swapped(W1, b1)


@dataclass(frozen=True, eq=False)
class Mapped(Change):
    """W' = f(W), and b' = g(b, W); b is None where there is none."""

    f: Callable[[Any], Any]
    g: Callable[[Any, Any], Any]

    def onto(self, W: Any) -> Any:
        return self.f(W)

    def bias_over(self, b: Any, W: Callable[[], Any]) -> Any:
        return self.g(b, W())


def mapped(f: Callable[[Any], Any], g: Callable[[Any, Any], Any]) -> Mapped:
    """f(W) in place of W, and g(b, W) of b, which is None where there is none."""
    return Mapped(f, g)


# --- what a method says in plain --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dense(Change):
    """W + D, or b + D."""

    D: Any

    def onto(self, W: Any) -> Any:
        return W + self.D

    def linear(self, x: Any, base: Any, drop: Input = same_input) -> Any:
        if drop is same_input:
            return ops.linear(x, base.W + self.D, base.b)
        return base(x) + ops.linear(drop(x), self.D)

    def rows(self, ids: Any, base: Any) -> Any:
        return base(ids) + ops.take(self.D, ids=ids)


class Weighed(Change):
    """W' = f(W), computed once, and b' = g(b). `still` is the part of it that dropout leaves alone."""

    __slots__ = ("_f", "_g", "_made", "_still")

    def __init__(self, f: Callable[[Any], Any], still: Sum, g: Callable[[Any], Any] = lambda b: b) -> None:
        self._f, self._g, self._still, self._made = f, g, still, (None, None)

    def onto(self, W: Any) -> Any:
        if self._made[0] is not W:
            self._made = (W, self._f(W))
        return self._made[1]

    def bias(self, b: Any) -> Any:
        return self._g(b)

    @property
    def steady(self) -> Sum:
        return self._still


def rows_kept(change: Change, k: Any) -> Change:
    """The change with its rows times k (out)."""
    if isinstance(change, Dense):
        return Dense(change.D * k[:, None])
    if isinstance(change, Sum):
        terms = tuple(t if t.steady else replace(t, B=t.B * k[:, None]) for t in change.terms)
        return replace(change, terms=terms)

    def some(W: Any) -> Any:
        return W + k[:, None] * (change.onto(W) - W)

    return Mapped(some, change.g) if isinstance(change, Mapped) else Weighed(some, Sum(()), change.bias)
