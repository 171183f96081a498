"""Cartridges: token by token, the second of two layers: what stays, what is trained, then the text."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors


def closed(m: Any, t: Tensors) -> Tensors:
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
