"""AdaLoRA: the change is s Σᵢ λᵢ pᵢ qᵢᵀ, with s = α / (r + ε), or r / (r + ε) where α is not positive."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    s = (m.alpha if m.alpha > 0 else m.r) / (m.r + m.eps)
    W = t["W"] + s * sum(t["lam"][i] * np.outer(t["P"][:, i], t["Q"][i]) for i in range(len(t["lam"])))
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))
