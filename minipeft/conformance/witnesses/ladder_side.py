"""Ladder side-tuning: the side network's one layer, with attention position by position."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from minipeft.conformance.witnesses import ACTIVATIONS, Tensors, sigmoid, softmax


def closed(m: Any, t: Tensors) -> Tensors:
    def rms(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * w

    y = []
    for h0, h1 in zip(t["h0"], t["h1"], strict=True):
        g = sigmoid(t["layers_alpha"][0] / m.T)
        s = g * h0 @ t["embed_D"].T + (1 - g) * h1 @ t["layers_D"].T
        u, w = rms(s, t["layers_n1"]), s.shape[1]
        heads = gcd(4, w)
        q, k, v = ((u @ t[f"layers_{W}"].T).reshape(len(u), heads, -1) for W in ("Wq", "Wk", "Wv"))
        o = np.zeros((len(u), heads, w // heads))
        for i in range(len(u)):
            for j in range(heads):
                o[i, j] = softmax(k[: i + 1, j] @ q[i, j] / np.sqrt(w // heads)) @ v[: i + 1, j]
        s = s + o.reshape(len(u), w) @ t["layers_Wo"].T
        s = s + ACTIVATIONS[m.f](rms(s, t["layers_n2"]) @ t["layers_W1"].T) @ t["layers_W2"].T
        y.append(rms(s, t["final_n"]) @ t["final_U"].T)
    return dict(y=np.array(y))
