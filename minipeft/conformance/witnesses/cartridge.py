"""Cartridges: token by token, the second of two layers: what stays, what is trained, then the text."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors
from minipeft.conformance.witnesses._decoder import decoded


def closed(m: Any, t: Tensors) -> Tensors:
    if "ids" in t:
        rows = np.array([*t["F"], *t["E"]]).reshape(m.p, -1, len(t["Wk0"]) // 4, 4)  # heads of width 4

        def prefix(layer: int) -> tuple[np.ndarray, np.ndarray]:
            at = 2 * (layer if m.layout == "ordered" else 2 * layer % (rows.shape[1] // 2))
            return rows[:, at], rows[:, at + 1]

        return decoded(t, prefix=prefix, start=m.p if m.positions == "after" else 0)
    b, groups, s, e = t["k"].shape
    out = {}
    for name, block in (("k", 0), ("v", 1)):
        x = np.empty((b, groups, m.p + s, e))
        for j in range(m.p):
            token = t["F"][j] if j < m.frozen else t["E"][j - m.frozen]
            for g in range(groups):
                at = (block * groups + g) * e
                x[:, g, j] = token[at : at + e]
        x[:, :, m.p :] = t[name]
        out[name] = x
    return out
