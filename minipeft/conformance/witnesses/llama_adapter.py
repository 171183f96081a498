"""LLaMA-Adapter: the gated attention to the prompt, one query at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, softmax
from minipeft.conformance.witnesses._decoder import decoded


def closed(m: Any, t: Tensors) -> Tensors:
    if "ids" in t:

        def beside(layer: int, q: np.ndarray) -> np.ndarray:
            A, g = (t[f"layers_{layer}_attn_heads_{name}"] for name in "Ag")
            k, v = ((A @ t[f"{W}{layer}"].T).reshape(m.K, 2, -1) for W in ("Wk", "Wv"))
            found = [softmax(k[:, h // 2] @ one / np.sqrt(len(one))) @ v[:, h // 2] for h, one in enumerate(q)]
            return g[0] * np.array(found)

        return decoded(t, beside=beside)
    q, groups = t["q"], t["q"].shape[1] // 2
    k, v = ((t["A"] @ t[W].T).reshape(m.K, 2, -1) for W in ("Wk", "Wv"))
    y = np.zeros_like(t["o"]).reshape(*t["o"].shape[:2], q.shape[1], -1)
    for i in range(len(q)):
        for h in range(q.shape[1]):
            for s in range(q.shape[2]):
                w = softmax(k[:, h // groups] @ q[i, h, s] / np.sqrt(q.shape[-1]))
                y[i, s, h] = t["g"][0] * (w @ v[:, h // groups])
    return dict(y=t["o"] + y.reshape(t["o"].shape))
