"""C3A: every block of the output is a sum of circular correlations with blocks of the input."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    k, n = t["k"], m.block

    def change(x: np.ndarray) -> np.ndarray:
        y = np.zeros(len(k) * n)
        for p in range(k.shape[0]):
            for q in range(k.shape[1]):
                for row in range(n):
                    for shift in range(n):  # the first row of a block, moved right by one in each that follows
                        y[p * n + row] += k[p, q, shift] * x[q * n + (row + shift) % n] / len(x)
        return y

    return dict(y=each(lambda x: t["W"] @ x + t["b"] + change(x), t["x"]))
