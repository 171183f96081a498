"""AdaLoRA: the change is s Σᵢ λᵢ pᵢ qᵢᵀ, with s = α / (r + ε)."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    s = m.alpha / (m.r + m.eps)
    W = t["W"] + s * sum(t["lam"][i] * np.outer(t["P"][:, i], t["Q"][i]) for i in range(len(t["lam"])))
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))
