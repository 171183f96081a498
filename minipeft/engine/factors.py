"""Factors of a matrix, decomposed on the host in float64: singular triples, or A (r, in) and B (out, r) of a part of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.engine.backend import to_host
from minipeft.errors import Bad


def finite(what: str, W: Any) -> np.ndarray:
    """W on the host, in float64; `what` names it. Raises `Bad` for NaN and infinity: their decomposition fails, or never ends."""
    W = np.asarray(to_host(W), np.float64)
    if not (good := np.isfinite(W)).all():
        raise Bad(
            f"{what}: expected finite numbers to decompose, found {int((~good).sum())} of {W.size} NaN or infinite"
        )
    return W


def singular(what: str, W: Any) -> tuple[Any, Any, Any]:
    """U, Σ, Vᵀ of W, which `what` names. Raises `Bad` as `finite`."""
    return np.linalg.svd(finite(what, W), full_matrices=False)


def principal(W: np.ndarray, r: int) -> tuple[Any, Any]:
    """B A is the part of the r largest singular values: A = √Σ_r V_rᵀ, B = U_r √Σ_r."""
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    root = np.sqrt(S[:r])
    return root[:, None] * Vt[:r], U[:, :r] * root


def leading(W: np.ndarray, r: int) -> tuple[Any, Any]:
    """B A has W's first r columns: W = Q R, A the first r rows of R, B the first r columns of Q."""
    Q, R = np.linalg.qr(W)
    return R[:r], Q[:, :r]
