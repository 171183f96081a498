"""Every kind of change: as a linear, as rows of a table and as a bias it is what its matrix says, with dropout and over others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft.changes import (
    Change,
    Dense,
    Sum,
    Weighed,
    lowrank,
    mapped,
    replaced,
    rotated,
    rows_kept,
    scaled,
    shift,
    steady,
)
from minipeft.engine.bfloat16 import bfloat16
from minipeft.engine.tensor import value_and_grad
from minipeft.engine.weight import widened
from minipeft.method import Base

OUT, IN = 6, 8


def same(b: Any) -> Any:
    """What leaves a bias alone."""
    return b


@dataclass(frozen=True)
class Kind:
    """A change, and what it is in plain NumPy: W', b', and the part of W' that dropout leaves alone (W if none)."""

    change: Change
    weight: Callable[[Any], Any]
    bias: Callable[[Any], Any] = same
    still: Callable[[Any], Any] = same
    over: Callable[[Any, Any], Any] | None = None  # b', where it depends on W too

    def bias_over(self, b: Any, W: Any) -> Any:
        """b' over W."""
        return self.bias(b) if self.over is None else self.over(b, W)


def low_rank(draw, wide=False):
    """B A with numbers drawn, and its matrix."""
    rng, r = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.integers(1, 3))
    B, A = rng.standard_normal((OUT, r)), rng.standard_normal((r, IN + 3 * wide))
    return lowrank(B, A, wide), sum(np.outer(B[:, i], A[i, :IN]) for i in range(r))


def numbers(draw, *shape):
    """Numbers of a shape."""
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal(shape)


factors = st.floats(-3, 3)
often = settings(max_examples=60)  # of some thirty kinds


@st.composite
def sums(draw):
    """s (B A + t B' A') − u B'' A'' + c, in one of its forms."""
    (one, M), (two, N), (wide, P), c = low_rank(draw), low_rank(draw), low_rank(draw, True), numbers(draw, OUT)
    s, t, u = draw(factors), draw(factors), draw(factors)

    def plus(b, k=1.0):
        return k * c if b is None else b + k * c

    return draw(
        st.sampled_from(
            [
                Kind(one, lambda W: W + M),
                Kind(wide, lambda W: W + P),
                Kind(s * one, lambda W: W + s * M),
                Kind(one * s, lambda W: W + s * M),
                Kind(-one, lambda W: W - M),
                Kind(one + two, lambda W: W + M + N),
                Kind(one - two, lambda W: W + M - N),
                Kind(s * (one + t * two) - u * wide, lambda W: W + s * (M + t * N) - u * P),
                Kind(shift(c), lambda W: W, plus),
                Kind(shift(None), lambda W: W),
                Kind(s * (one + shift(c)), lambda W: W + s * M, lambda b: plus(b, s)),
                Kind(-shift(c) + one, lambda W: W + M, lambda b: plus(b, -1.0)),
                Kind(shift(c) - t * shift(c) + one, lambda W: W + M, lambda b: plus(b, 1 - t)),
                Kind(steady(one), lambda W: W + M, same, lambda W: W + M),
                Kind(s * (one - steady(two)), lambda W: W + s * (M - N), same, lambda W: W - s * N),
                Kind(s * one - steady(t * two) + shift(c), lambda W: W + s * M - t * N, plus, lambda W: W - t * N),
            ]
        )
    )


@st.composite
def others(draw):
    """Changes that are no sums."""
    D, l, k = numbers(draw, OUT, IN), numbers(draw, OUT), numbers(draw, IN)
    n = draw(st.sampled_from([1, 2, 4, 8]))
    R = numbers(draw, draw(st.sampled_from([1, IN // n])), n, n)
    whole = np.kron(np.eye(IN // n), np.ones((n, n)))
    for i in range(IN // n):
        whole[i * n : (i + 1) * n, i * n : (i + 1) * n] = R[i if len(R) > 1 else 0]
    ids = tuple(draw(st.lists(st.integers(0, OUT - 1), min_size=1, max_size=OUT, unique=True)))
    T = numbers(draw, len(ids), IN)
    low, M = low_rank(draw)

    def new(W):
        W = W.copy()
        for row, i in zip(T, ids):
            W[i] = row
        return W

    def times(b):
        return b if b is None else b * l

    def no_bias(b):
        return None

    def moved(b, W):
        return W @ k if b is None else b * l + W @ k

    return draw(
        st.sampled_from(
            [
                Kind(Dense(D), lambda W: W + D),
                Kind(scaled(l), lambda W: np.diag(l) @ W, times),
                Kind(scaled(in_=k), lambda W: W @ np.diag(k)),
                Kind(scaled(in_=k[:2]), lambda W: W @ np.diag(np.repeat(k[:2], IN // 2))),
                Kind(scaled(l, k), lambda W: np.diag(l) @ W @ np.diag(k), times),
                Kind(scaled(), lambda W: W),
                Kind(rotated(R), lambda W: W @ whole.T),
                Kind(rotated(R, table=True), lambda W: W @ whole),
                Kind(replaced(T, ids), new),
                Kind(replaced(T, ids, keeps_bias=False), new, no_bias),
                Kind(Weighed(lambda W: W * k + D, Sum(())), lambda W: W * k + D),
                Kind(mapped(lambda W: W * k + D, moved), lambda W: W * k + D, over=moved),
                Kind(Weighed(lambda W: W * k, steady(low)), lambda W: W * k, same, lambda W: W + M),
            ]
        )
    )


@st.composite
def kept(draw):
    """A change with some of its rows."""
    kind, k = draw(sums() | others()), np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2, OUT) * 1.7
    still = kind.still if isinstance(kind.change, Sum) else same

    def some(W):
        return still(W) + k[:, None] * (kind.weight(W) - still(W))

    return Kind(rows_kept(kind.change, k), some, kind.bias, still, kind.over)


KINDS = sums() | others() | kept()


@st.composite
def bases(draw, table=False):
    """A base that is plain, or has another method on it: W' there, b' there."""
    W, b = numbers(draw, OUT, IN), None if table or draw(st.booleans()) else numbers(draw, OUT)
    if draw(st.booleans()):
        return Base(W, b, table), W, b
    on = W * 1.5 + numbers(draw, OUT, IN)
    if table:
        return Base(W, b, True, lambda ids: on[ids], lambda: on), on, b
    return Base(W, b, False, lambda x: x @ on.T + (0 if b is None else b), lambda: on), on, b


def plain(x, W, b):
    """x Wᵀ + b."""
    return x @ W.T + (0 if b is None else b)


# --- agreeing with the matrix -----------------------------------------------------------------------------------------


@often
@given(KINDS, bases())
def test_the_matrix_and_the_bias(kind, base):
    _, W, b = base
    assert np.allclose(kind.change.onto(W), kind.weight(W))
    got, want = kind.change.bias_over(b, lambda: W), kind.bias_over(b, W)
    assert (got is None) == (want is None) and (got is None or np.allclose(got, want))


@often
@given(KINDS, bases(), st.sampled_from([(5,), (2, 3), ()]), st.integers(0, 99))
def test_a_linear(kind, base, shape, seed):
    under, W, b = base
    x = np.random.default_rng(seed).standard_normal((*shape, IN))
    assert np.allclose(kind.change.linear(x, under), plain(x, kind.weight(W), kind.bias_over(b, W)))


@often
@given(KINDS, bases(), st.integers(0, 99))
def test_a_linear_under_dropout(kind, base, seed):
    """x W_sᵀ + drop(x) (W' − W_s)ᵀ + b', W_s being what was there before training."""
    under, W, b = base
    rng = np.random.default_rng(seed)
    x, mask = rng.standard_normal((2, 3, IN)), rng.integers(0, 2, (2, 3, IN)) * 2.0
    got = kind.change.linear(x, under, lambda x: x * mask)
    still = kind.still(W)
    assert np.allclose(got, plain(x, still, None) + plain(x * mask, kind.weight(W) - still, kind.bias_over(b, W)))


@often
@given(KINDS, bases(table=True), st.lists(st.integers(0, OUT - 1), min_size=1, max_size=9))
def test_rows_of_a_table(kind, base, ids):
    under, W, _ = base
    for some in (np.array(ids), np.array(ids)[None]):
        assert np.allclose(kind.change.rows(some, under), kind.weight(W)[some])


@often
@given(sums(), factors, st.sampled_from([np.float64, np.float32, np.int64, np.array]))
def test_times_a_number_of_numpys(kind, s, scalar):
    """NumPy leaves it to the change, which has no elements."""
    s, W = scalar(s), np.ones((OUT, IN))
    change = kind.change
    for got in (s * change, change * s):
        assert isinstance(got, Sum)
        assert np.allclose(got.onto(W) - W, s * (kind.weight(W) - W), atol=1e-5)
        none = kind.bias(None)
        assert got.bias(None) is None if none is None else np.allclose(got.bias(None), s * none, atol=1e-5)


@often
@given(KINDS)
def test_no_change_is_taken_for_an_array(kind):
    with pytest.raises(TypeError):
        np.ones((OUT, IN)) + kind.change
    with pytest.raises(TypeError):
        np.add(np.ones((OUT, IN)), kind.change)


@often
@given(sums(), sums())
def test_sums_add_up(one, two):
    W = np.ones((OUT, IN))
    assert np.allclose((one.change + two.change).onto(W), one.weight(W) + two.weight(W) - W)
    assert np.allclose((one.change - two.change).onto(W), W + one.weight(W) - two.weight(W))
    assert np.allclose((one.change + two.change).steady.onto(W), one.still(W) + two.still(W) - W)


# --- what is not computed ---------------------------------------------------------------------------------------------


def test_a_product_with_factors_forms_no_matrix():
    """A linear over a plain base never asks for W', or the base's W as an array."""

    class Asked(Base):
        W = property(lambda self: pytest.fail("the matrix was asked for"))

    rng = np.random.default_rng(0)
    W, B, A, x = (
        rng.standard_normal((OUT, IN)),
        rng.standard_normal((OUT, 2)),
        rng.standard_normal((2, IN)),
        np.ones((3, IN)),
    )
    want = x @ (W + 2 * B @ A).T
    assert np.allclose((2 * lowrank(B, A)).linear(x, Asked(W)), want)
    assert np.allclose((2 * lowrank(B, A)).linear(x, Asked(W), lambda x: x), want)
    ids = np.array([3, 0])
    assert np.allclose((2 * lowrank(B, A)).rows(ids, Asked(W, table=True)), (W + 2 * B @ A)[ids])
    assert np.allclose(scaled(B[:, 0], A[0]).linear(x, Asked(W)), x @ (np.diag(B[:, 0]) @ W @ np.diag(A[0])).T)
    R = rng.standard_normal((1, IN, IN))
    assert np.allclose(rotated(R).linear(x, Asked(W)), x @ R[0] @ W.T)


def test_a_base_in_bfloat16_is_not_widened_for_a_product():
    rng = np.random.default_rng(0)
    held = bfloat16(rng.standard_normal((OUT, IN)).astype(np.float32))
    B, A, x = (rng.standard_normal(s).astype(np.float32) for s in ((OUT, 2), (2, IN), (3, IN)))
    got = lowrank(B, A).linear(x, Base(held))
    assert got.dtype == np.float32 and np.allclose(got, x @ (widened(held) + B @ A).T, rtol=0.05, atol=0.05)


def test_w_is_made_once():
    calls = []
    change = Weighed(lambda W: calls.append(1) or W * 2, Sum(()))
    W, V = np.ones((OUT, IN)), np.zeros((OUT, IN))
    for at in (W, W, V):
        change.onto(at)
    assert len(calls) == 2


@often
@given(sums())
def test_gradients_of_factors_and_matrix_agree(kind):
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((OUT, IN)), rng.standard_normal((5, IN))
    if not (isinstance(kind.change, Sum) and kind.change.terms):
        return
    term = kind.change.terms[0]
    theta = dict(B=term.B, A=term.A)

    def by(way):
        def loss(t):
            change = 0.5 * lowrank(t["B"], t["A"], wide=True)
            y = change.linear(x, Base(W)) if way == "factors" else Weighed(change.onto, Sum(())).linear(x, Base(W))
            return (y * y).sum()

        return value_and_grad(loss)(theta)[1]

    one, two = by("factors"), by("matrix")
    assert all(np.allclose(one[k], two[k]) for k in theta)
