"""bfloat16: roundings against exact arithmetic and torch, and the ops that take a weight held so."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.conformance import cases
from minipeft.engine import ops, value_and_grad
from minipeft.engine.bfloat16 import UNIT, Bfloat16, bfloat16, rounded
from minipeft.engine.weight import widened
from minipeft.errors import Bad
from minipeft.quantize import quantize

K, U = 8, 2.0**-24


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def every_bits():
    return np.arange(1 << 16, dtype=np.uint16)


# --- rounding -------------------------------------------------------------------------------------------------------


def test_every_bfloat16_is_itself():
    bits = every_bits()
    wide = Bfloat16(bits).dequantize()
    assert ((wide.view(np.uint32) >> 16) == bits).all() and not (wide.view(np.uint32) & 0xFFFF).any()
    numbers = np.isfinite(wide) | np.isinf(wide)
    assert (bfloat16(wide).values[numbers] == bits[numbers]).all()
    assert np.isnan(bfloat16(wide).dequantize()[~numbers]).all() and (~numbers).sum() == 2 * 127


FINITE = Bfloat16(np.arange(0x7F80, dtype=np.uint16)).dequantize()  # all that are not negative, ascending


def nearest(x: float) -> float:
    """The nearest of all bfloat16 by exact comparison; of two, the even."""
    i = int(np.searchsorted(FINITE, abs(x)))
    low, high = Fraction(float(FINITE[max(i - 1, 0)])), Fraction(float(FINITE[min(i, len(FINITE) - 1)]))
    off = abs(Fraction(x)) - low, high - abs(Fraction(x))
    up = off[1] < off[0] or (off[1] == off[0] and i % 2 == 0)
    return float(np.copysign(float(high if up else low), x))


@given(st.floats(-(2.0**127), 2.0**127, width=32))
def test_a_float32_goes_to_the_nearest(x):
    assert rounded(np.array(x, np.float32)) == nearest(x)


@given(st.integers(0, 0x7F7E), st.sampled_from([0, 1, -1, 2.0**-40, -(2.0**-40)]), st.booleans())
def test_near_the_middle_of_two_a_float64_is_rounded_once(i, by, negative):
    """Where rounding to float32 first would put it into the middle, and then to the wrong side."""
    low, high = float(FINITE[i]), float(FINITE[i + 1])
    x = (low + high) / 2 * (1 + by * 2.0**-52 if abs(by) == 1 else 1 + by)
    x = -x if negative else x
    assert rounded(np.array([x]))[0] == nearest(x)


def test_equals_the_rounding_of_the_cases():
    for dtype in (np.float32, np.float64):
        x = (normal(20_000) * np.exp(normal(20_000, seed=1) * 15)).astype(dtype)
        assert (rounded(x) == cases.bfloat16(x)).all() and rounded(x).dtype == dtype
        assert (abs(rounded(x) - x) <= UNIT * abs(x)).all() and abs((rounded(x) - x) / x).max() > 0.99 * UNIT / (
            1 + UNIT
        )


def test_what_is_no_number_or_too_large():
    x = np.array([np.nan, -np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 3.389e38, -0.0, 1e-45], np.float32)
    x[1:2].view(np.uint32)[:] |= 0xFFFF  # a NaN whose bits would overflow
    got = rounded(x)
    assert np.isnan(got[:2]).all() and got[2:6].tolist() == [np.inf, -np.inf, np.inf, -np.inf]
    assert np.isfinite(got[6]) and got[7:].tolist() == [0, 0] and np.signbit(got[7])


@pytest.mark.hf
def test_torch_rounds_alike():
    import torch

    x = np.frombuffer(np.random.default_rng(0).bytes(4 << 20), np.float32)
    want = torch.from_numpy(x.copy()).to(torch.bfloat16).float().numpy()
    assert np.array_equal(rounded(x), want, equal_nan=True)


# --- what is held ---------------------------------------------------------------------------------------------------


def test_what_is_held():
    x = normal(5, 3)
    q = bfloat16(x)
    assert (q.shape, q.size, len(q), q.nbytes, q.dtype) == ((5, 3), 15, 5, 30, np.float32)
    assert (q.dequantize() == cases.bfloat16(x)).all() and q.dequantize().dtype == np.float32
    assert (q[np.array([[4, 0]])] == q.dequantize()[np.array([[4, 0]])]).all()
    assert q.astype(np.float64).dtype == np.float64 and (q.astype(np.float64) == q.dequantize()).all()
    assert (Bfloat16(**q.to_arrays()).values == q.values).all()
    assert widened(x) is x and (widened(q) == q.dequantize()).all() and widened(None) is None
    with pytest.raises(ValueError, match="read-only"):
        q.values[0] = 0
    with pytest.raises(Bad, match="bfloat16: expected the bits as uint16, found float32"):
        Bfloat16(x)


def test_other_layouts_and_sizes():
    for x in (normal(6, 4).T, normal(6, 4)[:, ::2], normal(0, 3), np.float32([]), np.array(1.01, np.float32)):
        assert bfloat16(x).shape == x.shape and (rounded(x) == cases.bfloat16(x)).all()


# --- ops ------------------------------------------------------------------------------------------------------------


def theta_of(x, lowrank):
    A, B, b = normal(2, 14, seed=1), normal(10, 2, seed=2), normal(10, seed=3)
    return {"x": x, "b": b} | (dict(A=A, B=B) if lowrank else {})


def apply(t, W):
    if "A" in t:
        return ops.linear_lowrank(t["x"], W, t["A"], t["B"], t["b"], s=1.5)
    return ops.linear(t["x"], W, t["b"])


@pytest.mark.parametrize("lowrank", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_is_that_of_the_rounded_factors(lowrank, dtype):
    """Value and gradients in float64, written apart, with the other rounding; the low rank sees x and g as they are."""
    W = bfloat16(normal(10, 14, seed=4))
    theta = {k: v.astype(dtype) for k, v in theta_of(normal(3, 5, 14), lowrank).items()}
    g = normal(3, 5, 10, seed=5).astype(dtype)

    def loss(t):
        y = apply(t, W)
        return ops.sum(ops.mul(y, g)), y

    (_, y), got = value_and_grad(loss)(theta)
    t, w, g = {k: v.astype(np.float64) for k, v in theta.items()}, W.astype(np.float64), g.astype(np.float64)
    xr, gr = cases.bfloat16(t["x"]), cases.bfloat16(g)

    def exact(t, xr, w, g, gr):
        want = dict(y=xr @ w.T + t["b"], x=gr @ w, b=g.sum((0, 1)))
        if lowrank:
            want["y"] = want["y"] + 1.5 * t["x"] @ t["A"].T @ t["B"].T
            want["x"] = want["x"] + 1.5 * g @ t["B"] @ t["A"]
            want["A"] = 1.5 * np.einsum("ijr,ijk->rk", g @ t["B"], t["x"])
            want["B"] = 1.5 * np.einsum("ijo,ijr->or", g, t["x"] @ t["A"].T)
        return want

    cond = exact({k: abs(v) for k, v in t.items()}, abs(xr), abs(w), abs(g), abs(gr))
    u = float(np.finfo(dtype).eps) / 2
    for k, want in exact(t, xr, w, g, gr).items():
        found = y.value if k == "y" else got[k]
        assert found.dtype == dtype and (abs(found - want) <= K * u * cond[k]).all(), k
    assert abs(y.value - exact(t, t["x"], w, g, gr)["y"]).max() > 100 * U  # it was rounded


@pytest.mark.parametrize("lowrank", [False, True])
def test_gradients_are_differences_where_nothing_is_rounded(lowrank):
    """Small whole numbers are bfloat16: sums and differences are exact, and equal those of an array W."""
    rng = np.random.default_rng(0)

    def whole(*shape):
        return rng.integers(-4, 5, shape).astype(np.float64)

    W, g = bfloat16(whole(10, 14)), whole(3, 10)
    theta = dict(x=whole(3, 14), b=whole(10)) | (dict(A=whole(2, 14), B=whole(10, 2)) if lowrank else {})

    def loss(t, W=W):
        return ops.sum(ops.mul(apply(t, W), g))

    value, grads = value_and_grad(loss)(theta)
    plain, others = value_and_grad(lambda t: loss(t, W.astype(np.float64)))(theta)
    assert value == plain and all((grads[k] == others[k]).all() for k in theta)
    for k, x in theta.items():
        by = whole(*x.shape)
        assert loss(theta | {k: x + by}) - value == (grads[k] * by).sum()


def test_rows_of_a_table():
    W, ids = bfloat16(normal(7, 3)), np.array([[6, 0], [2, 2]])
    assert (ops.take(W, ids=ids) == cases.bfloat16(normal(7, 3))[ids]).all()
    assert ops.take(W, ids=ids).dtype == np.float32


def test_no_array_as_wide_is_kept_for_the_gradient():
    """Between forward and backward a product holds the bits alone."""
    W, x = bfloat16(normal(10, 14)), normal(3, 14)
    for t in (theta_of(x, False), theta_of(x, True)):
        kept = []

        def loss(t, kept=kept):
            y = apply(t, W)
            vjps = y.node.vjps if isinstance(y.node.vjps, tuple) else (y.node.vjps,)
            kept += [c.cell_contents for f in vjps for c in f.__closure__ or ()]
            return ops.sum(y)

        value_and_grad(loss)(t)
        assert any(a is W for a in kept) and not any(getattr(a, "shape", None) == (10, 14) and a is not W for a in kept)


def test_a_quantised_weight_is_no_bfloat16():
    assert type(widened(quantize(normal(4, 4)))) is np.ndarray
