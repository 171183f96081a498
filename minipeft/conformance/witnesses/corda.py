"""CorDA: PiSSA's; it differs in where it starts."""

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, scale
from minipeft.conformance.witnesses.pissa import closed

__all__ = ["closed", "start_BA"]


def start_BA(m: Any, t: Tensors) -> np.ndarray:
    """B A as training starts: what W puts out along the eigenvectors (u, v)/√2 of [0 M; Mᵀ 0], M = W C with C the moments of X."""
    X, (out, in_) = t["X"] / abs(t["X"].max()), t["W"].shape
    C = np.einsum("ti,tj->ij", X, X)
    C[np.diag_indices(in_)] += 0.01 * np.diag(C).mean()
    M = t["W"] @ C
    both = np.block([[np.zeros((out, out)), M], [M.T, np.zeros((in_, in_))]])
    U = 2**0.5 * np.linalg.eigh(both)[1][:out, ::-1][:, : m.r]
    return U @ (U.T @ t["W"]) / scale(m)
