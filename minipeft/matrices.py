"""Matrices of a form: skew-symmetric, orthogonal, circulant, Tucker's. Words of a method's equation, as ops of the engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minipeft.engine import ops
from minipeft.engine.backend import once, xp
from minipeft.engine.tensor import value


@once
def _above_diagonal(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(n, 1)


def skew(q: Any) -> Any:
    """Skew-symmetric matrices (K, n, n) whose upper triangles hold the rows of q (K, n (n − 1)/2), row by row."""
    K, n = q.shape[0], (1 + math.isqrt(1 + 8 * q.shape[1])) // 2
    i, j = _above_diagonal(n)
    Q = ops.put(q, index=(slice(None), i, j), shape=(K, n, n))
    return Q - ops.swapaxes(Q)


def cayley(Q: Any, terms: int | None = None) -> Any:
    """(I + Q)(I − Q)⁻¹ of square matrices, orthogonal where Q is skew-symmetric. In its place so many `terms` of the series:

    I + 2 Q + … + 2 Q^{k−1} + Q^k, k = max(terms − 1, 3); 2 terms are I + 2 Q, and 1 is I.
    """
    I = xp.eye(Q.shape[-1], dtype=Q.dtype)
    if terms is None:
        return ops.solve(I - Q, I + Q)  # the factors commute
    if terms <= 2:
        return I + (2 * (terms - 1)) * Q
    R = 2 * I + Q
    for _ in range(max(terms - 1, 3) - 2):
        R = 2 * I + Q @ R
    return I + Q @ R


def qr(P: Any) -> Any:
    """Q of P = Q U, U upper triangular and invertible, with the signs of LAPACK's reflections.

    With U held constant P U⁻¹ = X is Q, and X where P moves on departs by X (XᵀX − I), the lower triangle left out and the diagonal halved.
    """
    U = xp.linalg.qr(value(P))[1]
    X = ops.solve(U.T, P.T).T
    I = xp.eye(U.shape[0], dtype=U.dtype)
    return X - X @ ((X.T @ X - I) * (xp.triu(xp.ones_like(I)) - I / 2))


@once
def _moved_right(n: int) -> np.ndarray:
    return (np.arange(n) - np.arange(n)[:, None]) % n


def circulant(k: Any) -> Any:
    """Matrices (…, n, n) whose first rows are k (…, n), each row moved right by one from the row above: [t, u] is k[(u − t) mod n]."""
    return ops.getitem(k, index=(Ellipsis, _moved_right(k.shape[-1])))


def tucker(T: Any, U: Any) -> Any:
    """(r, channels · pixels) of a core T (r, r, pixels) and U (r, channels): row i has Σ_j T[i, j, p] U[j, c] for channel c, pixel p."""
    apart = ops.swapaxes(T) @ U  # (r, pixels, channels)
    return ops.reshape(ops.swapaxes(apart), shape=(T.shape[0], U.shape[1] * T.shape[2]))
