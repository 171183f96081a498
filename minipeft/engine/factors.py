"""Two factors A (r, in), B (out, r) of a part of a matrix, decomposed on the host in float64."""

from __future__ import annotations

from typing import Any

import numpy as np


def principal(W: Any, r: int) -> tuple[Any, Any]:
    """B A is the part of the r largest singular values: A = √Σ_r V_rᵀ, B = U_r √Σ_r."""
    U, S, Vt = np.linalg.svd(np.asarray(W, np.float64), full_matrices=False)
    root = np.sqrt(S[:r])
    return root[:, None] * Vt[:r], U[:, :r] * root


def leading(W: Any, r: int) -> tuple[Any, Any]:
    """B A has W's first r columns: W = Q R, A the first r rows of R, B the first r columns of Q."""
    Q, R = np.linalg.qr(np.asarray(W, np.float64))
    return R[:r], Q[:, :r]
