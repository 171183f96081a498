"""Arrow: token by token, the experts in the order of how far the token lies along their directions."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each, scale, softmax


def closed(m: Any, t: Tensors) -> Tensors:
    def at(x: np.ndarray) -> np.ndarray:
        along = [abs(sum(a * b for a, b in zip(v, x, strict=True))) for v in t["P"]]
        asked = sorted(range(len(along)), key=lambda k: -along[k])[: m.top_k]
        g = softmax(np.array([along[k] for k in asked]) / m.temperature)
        y = t["W"] @ x + t["b"]
        for share, k in zip(g, asked, strict=True):
            y = y + share * scale(m.experts[k]) * (t[f"B{k}"] @ (t[f"A{k}"] @ x))
        return y

    return dict(y=each(at, t["x"]))
