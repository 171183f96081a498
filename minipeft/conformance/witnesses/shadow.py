"""ShadowPEFT: two layers and a backbone, attention position by position."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import ACTIVATIONS, Tensors, sigmoid, softmax

H, G = 4, 2  # heads over heads of keys and values


def _rms(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return w * x / np.sqrt((x @ x) / len(x) + 1e-5)


def _backbone(m: Any, t: Tensors, h: np.ndarray) -> np.ndarray:
    for n in range(m.depth):
        u = [_rms(x, t[f"na{n}"]) for x in h]
        q, k, v = (np.array([t[f"{a}{n}"] @ x for x in u]) for a in "qkv")
        e = q.shape[1] // H
        rows = []
        for i in range(len(h)):
            joined = []
            for j in range(H):
                of = slice(j // (H // G) * e, (j // (H // G) + 1) * e)
                p = softmax(np.array([q[i, j * e : (j + 1) * e] @ k[s, of] for s in range(i + 1)]) / np.sqrt(e))
                joined.append(sum(p[s] * v[s, of] for s in range(i + 1)))
            x = h[i] + t[f"o{n}"] @ np.concatenate(joined)
            rows.append(x + t[f"down{n}"] @ ACTIVATIONS["gelu_tanh"](t[f"up{n}"] @ _rms(x, t[f"nm{n}"])))
        h = np.array(rows)
    return np.array([_rms(x, t["norm"]) for x in h])


def closed(m: Any, t: Tensors) -> Tensors:
    y = np.zeros_like(t["h"])
    for row, h in enumerate(t["h"]):
        for i, s in enumerate(_backbone(m, t, h)):
            x = h[i]
            for n in range(2):
                own = {k.removeprefix(f"layers_{n}_"): a for k, a in t.items() if k.startswith(f"layers_{n}_")}
                x = (x + m.alpha * own["W_up"] @ (own["W_down"] @ (x - s))) * t[f"f{n}"][row, i]
                inner = [ACTIVATIONS["gelu"](own[f"{a}1"] @ x + own[f"{a.lower()}1"]) for a in "TG"]
                new, z = (own[f"{a}2"] @ i + own[f"{a.lower()}2"] for a, i in zip("TG", inner, strict=True))
                s = s + sigmoid(z) * (new - s)
            y[row, i] = x
    return dict(y=y)
