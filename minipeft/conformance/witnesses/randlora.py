"""RandLoRA: number by number, from every pair of a random column and a scaled random row."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    out, in_ = t["W"].shape
    r, n = t["Lambda"].shape
    change = np.zeros((max(out, in_), min(out, in_)))
    for place in range(r * n):
        b, k = divmod(place, r)  # the columns are those of one matrix after another
        row, c = divmod(place, n)  # the rows are those of one row of A after another
        for i in range(change.shape[0]):
            for j in range(change.shape[1]):
                change[i, j] += t["B"][i, b, k] * t["Lambda"][row, c] * t["A"][row, 0, j] * t["Gamma"][c, j]
    change = m.alpha / m.r * (change if in_ <= out else change.T)
    return dict(y=each(lambda x: t["W"] @ x + t["b"] + change @ x, t["x"]))
