"""WaveFT: each coefficient adds the outer product of two filters, placed by hand; the filters from their printed values."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each

ROOT3, ROOT7 = 3**0.5, 7**0.5
SCALING = {
    "db1": [2**-0.5] * 2,
    "db2": [(1 + ROOT3) / 32**0.5, (3 + ROOT3) / 32**0.5, (3 - ROOT3) / 32**0.5, (1 - ROOT3) / 32**0.5],
    "coif1": [n / (16 * 2**0.5) for n in (1 - ROOT7, 5 + ROOT7, 14 + 2 * ROOT7, 14 - 2 * ROOT7, 1 - ROOT7, -3 + ROOT7)],
}


def _wave(n: int, k: int, detail: bool, family: str) -> np.ndarray:
    """Number k of the scaling functions or wavelets, of n numbers."""
    h = SCALING[family]
    out = np.zeros(n)
    for t in range(len(h)):
        at = 2 * k + t - (len(h) - 2)
        if 0 <= at < n:
            out[at] = (-1) ** t * h[len(h) - 1 - t] if detail else h[t]
    return out


def closed(m: Any, t: Tensors) -> Tensors:
    out, in_ = t["W"].shape
    W = t["W"].copy()
    longer = len(SCALING[m.wavelet]) - 2
    P, Q = (n + longer + (n + longer) % 2 for n in (out, in_))
    for c, row, column in zip(t["c"], t["rows"], t["cols"], strict=True):
        if not m.idwt:
            W[row, column] += m.scaling * c
            continue
        i, j = row + (P - out) // 2, column + (Q - in_) // 2
        down, right = i >= P // 2, j >= Q // 2
        u = _wave(out, i - P // 2 if down else i, right, m.wavelet)
        v = _wave(in_, j - Q // 2 if right else j, down, m.wavelet)
        W += m.scaling * c * u[:, None] * v
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))
