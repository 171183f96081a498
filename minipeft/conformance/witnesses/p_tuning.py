"""P-tuning: the prompt by an MLP, or by an LSTM in both directions, gate by gate."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, sigmoid
from minipeft.conformance.witnesses._decoder import decoded


def closed(m: Any, t: Tensors) -> Tensors:
    def one_way(x: np.ndarray, n: int, way: int) -> np.ndarray:
        Wx, Wh, bx, bh = (t[f"{name}{n}"][way] for name in ("Wx", "Wh", "bx", "bh"))
        h = c = np.zeros(Wh.shape[1])
        out = []
        for row in x if way == 0 else x[::-1]:
            i, f, g, o = np.split(Wx @ row + bx + Wh @ h + bh, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out.append(h)
        return np.array(out if way == 0 else out[::-1])

    x = t["E0"]
    if m.encoder == "mlp":
        for n in (1, 2):
            x = np.maximum(x @ t[f"W{n}"].T + t[f"b{n}"], 0)
        P = x @ t["W3"].T + t["b3"]
    else:
        for n in range(m.layers):
            x = np.concatenate([one_way(x, n, 0), one_way(x, n, 1)], axis=1)
        P = np.maximum(x @ t["U1"].T + t["u1"], 0) @ t["U2"].T + t["u2"]
    if "ids" in t:
        return decoded(t, prompt=lambda row: P)
    return dict(y=np.array([np.concatenate([P, h]) for h in t["h"]]))
