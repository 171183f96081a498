"""LoReFT: h + Rᵀ (W h + b − R h) at the first and last positions."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors


def closed(m: Any, t: Tensors) -> Tensors:
    n = t["h"].shape[1]
    y = t["h"].copy()
    for i in range(len(y)):
        for k in range(n):
            late, early = k >= n - m.n_suf, k < m.n_pre
            if late or early:
                end = "_s" if late and "W_s" in t else ""
                h, R = t["h"][i, k], t["R" + end]
                y[i, k] = h + R.T @ (t["W" + end] @ h + t["b" + end] - R @ h)
    return dict(y=y)
