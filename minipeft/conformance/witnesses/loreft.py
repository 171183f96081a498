"""LoReFT: h + Rᵀ (W h + b − R h) at the first and last positions."""

from __future__ import annotations

from typing import Any

import numpy as np

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


def before(m: Any, t: int, T: int, a: Tensors, g: Tensors, fixed: Tensors, kept: dict[Any, Any]) -> Tensors:
    turned = {k: (g[k] @ a[k].T + a[k] @ g[k].T) @ a[k] / 2 for k in g if k.startswith("R")}
    return {k: v - turned.get(k, 0.0) for k, v in g.items()}


def after(m: Any, t: int, T: int, a: Tensors, g: Tensors, fixed: Tensors, kept: dict[Any, Any]) -> Tensors:
    """R ← (R Rᵀ)^(−1/2) R."""
    found = {}
    for k, R in a.items():
        if k.startswith("R"):
            values, vectors = np.linalg.eigh(R @ R.T)
            found[k] = vectors @ np.diag(values**-0.5) @ vectors.T @ R
    return a | found
