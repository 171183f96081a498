"""X-LoRA: every token's weights of the experts, by the hidden states of the first pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each, scale, softmax


def closed(m: Any, t: Tensors) -> Tensors:
    def at(x: np.ndarray, h: np.ndarray) -> np.ndarray:
        z = h
        for i in range(m.depth):
            z = t[f"V{i}"] @ z + t[f"v{i}"]
            z = np.maximum(z, 0) if i < m.depth - 1 else z
        g = softmax(z / m.temperature) if m.softmax else z
        if m.top_k:
            g = np.where(np.argsort(np.argsort(-g, kind="stable")) < m.top_k, g, 0)
        if m.top_k_softmax:
            live = g != 0
            g = np.where(live, np.exp(g - g[live].max()), 0)
            g = g / g.sum()
        y = t["W"] @ x + t["b"]
        for k, e in enumerate(m.experts):
            y = y + m.gamma * scale(e) * g[k] * (t[f"B{k}"] @ (t[f"A{k}"] @ x))
        return y

    return dict(y=each(at, t["x"], t["h"]))
