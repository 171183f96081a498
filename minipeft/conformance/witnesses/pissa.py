"""PiSSA: the change is s (B A − B₀ A₀), one outer product after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each, scale


def closed(m: Any, t: Tensors) -> Tensors:
    W = t["W"] + scale(m) * sum(
        np.outer(t["B"][:, i], t["A"][i]) - np.outer(t["B0"][:, i], t["A0"][i]) for i in range(m.r)
    )
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


def start_BA(m: Any, t: Tensors) -> np.ndarray:
    """B A as training starts: s B A is the part of W along its first r directions, eigenvectors of WᵀW."""
    V = np.linalg.eigh(t["W"].T @ t["W"])[1][:, ::-1][:, : m.r]
    return t["W"] @ V @ V.T / scale(m)
