"""BOFT: what enters the linear is turned block by block, each factor in its own order of the inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    R = t["R"]
    F, _, h, _ = R.shape

    def y(x: np.ndarray) -> np.ndarray:
        for i in reversed(range(F)):  # x M, M = M_F … M_1, takes the last factor first
            out = np.zeros_like(x)
            order: list[int] = []
            for start in range(0, len(x), h * 2**i):
                halves = range(start, start + h * 2**i, h // 2)
                chosen = [*halves[::2], *halves[1::2]] if i else halves
                order += [a + k for a in chosen for k in range(h // 2)] if i else range(start, start + h)
            for d, block in enumerate(R[i]):
                S, I = (block - block.T) / 2, np.eye(h)
                Q = (I - S) @ np.linalg.inv(I + S)
                # x P diag(Q) Pᵀ: input order[j] is the j-th of P's
                places = np.argsort(order)[d * h : (d + 1) * h]
                out[places] = x[places] @ Q
            x = out
        return t["s"] * (t["W"] @ x) + t["b"]

    return dict(y=each(y, t["x"]))


TINY = ((dict(block=3), dict(R=(1, 1, 3, 3), s=(2,))),)
