"""MoSLoRA: the change is s Σ_i Σ_j M[i, j] (column i of B) ⊗ (row j of A)."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each, scale


def closed(m: Any, t: Tensors) -> Tensors:
    W = t["W"].copy()
    for i in range(m.r):
        for j in range(m.r):
            W += scale(m) * t["M"][i, j] * np.outer(t["B"][:, i], t["A"][j])
    extra = scale(m) * t["c"] if "c" in t else 0.0
    return dict(y=each(lambda x: W @ x + t["b"] + extra, t["x"]))
