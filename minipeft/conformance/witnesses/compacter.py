"""Compacter: every entry of a weight is a sum over the rules."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import ACTIVATIONS, Tensors, each


def weight(m: Any, R: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    s, t = left.shape[1], right.shape[2]
    W = np.zeros((m.n * s, m.n * t))
    for row in range(m.n * s):
        for column in range(m.n * t):
            for i in range(m.n):
                low = sum(left[i, row % s, k] * right[i, k, column % t] for k in range(m.rank))
                W[row, column] += R[i, row // s, column // t] * low
    return W


def closed(m: Any, t: Tensors) -> Tensors:
    down, up = weight(m, t["R"], t["Dl"], t["Dr"]), weight(m, t["R"], t["Ul"], t["Ur"])

    def after(a: np.ndarray, x: np.ndarray) -> np.ndarray:
        read = a if m.reads == "output" else x + a
        return a + ACTIVATIONS[m.f](read @ down + t["bd"]) @ up + t["bu"]

    return dict(y=each(after, t["a"], t["x"]))
