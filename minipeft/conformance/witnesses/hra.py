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


TINY = ((dict(r=2), dict(u=(3, 2))),)
