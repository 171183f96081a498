"""Matrices of a form are what they are called, and their gradients those of differences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.conformance.witnesses.deft import reflected
from minipeft.engine import gradcheck, ops
from minipeft.matrices import cayley, qr, skew, tucker


@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 99))
def test_skew(K, n, seed):
    q = np.random.default_rng(seed).standard_normal((K, n * (n - 1) // 2))
    Q = skew(q)
    assert Q.shape == (K, n, n) and np.array_equal(Q, -Q.transpose(0, 2, 1))
    for block, row in zip(Q, q):
        flat = iter(row)
        assert all(block[i, j] == next(flat) for i in range(n) for j in range(i + 1, n))


def test_cayley_s_transform_turns_and_so_nearly_do_its_terms():
    Q = skew(np.random.default_rng(0).standard_normal((2, 6)) / 8)
    R = cayley(Q)
    np.testing.assert_allclose(R @ R.swapaxes(1, 2), np.broadcast_to(np.eye(4), (2, 4, 4)), rtol=0, atol=1e-15)
    np.testing.assert_allclose(R @ (np.eye(4) - Q), np.eye(4) + Q, rtol=0, atol=1e-15)
    np.testing.assert_allclose(cayley(-Q), R.swapaxes(1, 2), rtol=0, atol=1e-15)
    far = [abs(cayley(Q, terms) - R).max() for terms in (1, 2, 3, 5, 9, 40)]
    assert far == sorted(far, reverse=True) and far[-1] < 1e-15
    np.testing.assert_array_equal(cayley(Q, 3), cayley(Q, 4))


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (6, 3), (5, 5), (40, 17)])
def test_the_columns_are_those_of_lapack_signs_and_all(shape):
    P = np.random.default_rng(0).standard_normal(shape)
    Q = qr(P)
    n = shape[0] * np.linalg.cond(P)
    np.testing.assert_allclose(Q, np.linalg.qr(P)[0], rtol=0, atol=8 * n * 2.0**-53)
    np.testing.assert_allclose(Q, reflected(P), rtol=0, atol=8 * n * 2.0**-53)


def test_a_column_with_nothing_below_its_pivot_keeps_its_sign():
    P = np.array([[2.0, 1.0, 3.0], [0.0, -1.0, 1.0], [0.0, 0.0, 5.0]])
    np.testing.assert_allclose(qr(P), np.eye(3), rtol=0, atol=1e-15)  # U is P itself, whose second pivot is −1
    np.testing.assert_allclose(qr(np.array([[3.0], [4.0]])), [[-0.6], [-0.8]], rtol=0, atol=1e-15)


def test_they_stay_orthonormal_where_columns_are_nearly_parallel():
    """X = P U⁻¹ is off by cond(P) roundings, 10⁻⁸ here; what it departs by is taken out again."""
    rng = np.random.default_rng(0)
    P = rng.standard_normal((20, 1)) + 1e-8 * rng.standard_normal((20, 4))
    Q = qr(P)
    assert abs(Q.T @ Q - np.eye(4)).max() < 1e-14


@pytest.mark.parametrize("shape", [(1, 1), (6, 3), (5, 5)])
def test_its_gradient_is_that_of_differences(shape):
    rng = np.random.default_rng(0)
    P, g = rng.standard_normal(shape), rng.standard_normal(shape)
    gradcheck(lambda t: ops.sum(qr(t["P"]) * g), dict(P=P))


def test_a_tucker_decomposition():
    rng = np.random.default_rng(0)
    T, U = rng.standard_normal((2, 2, 4)), rng.standard_normal((2, 3))
    np.testing.assert_allclose(tucker(T, U), np.einsum("ijp,jc->icp", T, U).reshape(2, 12), rtol=0, atol=1e-14)
    C = rng.standard_normal((2, 12))
    gradcheck(lambda p: ops.sum(tucker(**p) * C), dict(T=T, U=U))
