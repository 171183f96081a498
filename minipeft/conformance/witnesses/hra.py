"""HRA: what enters the linear is reflected at one hyperplane after the other, the last column's first."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    u = t["u"]
    if m.gram_schmidt:
        u, _ = np.linalg.qr(u)  # the same but for signs, which reflections do not know

    def y(x: np.ndarray) -> np.ndarray:
        for column in u.T[::-1]:
            x = x - 2 * column * (column @ x) / (column @ column)
        return t["W"] @ x + t["b"]

    return dict(y=each(y, t["x"]))


def added(m: Any, a: Tensors) -> Tensors:
    """Of λ ‖I − VᵀV‖², columns of u of length one being V: along a column it does not change."""
    size = np.sqrt((a["u"] ** 2).sum(axis=0))
    V = a["u"] / size
    g = -4 * m.lam * V @ (np.eye(m.r) - V.T @ V)
    return dict(u=(g - V * (V * g).sum(axis=0)) / size) if m.lam else {}


TINY = ((dict(r=2), dict(u=(3, 2))),)
