"""Super-Tuning: the values are added at their places, one after the other, and the low rank direction by direction."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    return dropped(m, t | {"kept": t["x"]})


def dropped(m: Any, t: Tensors) -> Tensors:
    W, low = t["W"].copy(), np.zeros_like(t["W"])
    for v, p in zip(t["v"], t["p"], strict=True):
        W.flat[int(p)] += v
    for k in range(m.r):
        low += m.scale * np.outer(t["B"][:, k], t["A"][k])
    return dict(y=each(lambda x, kept: W @ x + low @ kept + t["b"], t["x"], t["kept"]))


def start_p(m: Any, t: Tensors) -> np.ndarray:
    """One after the other, the place of the largest that is left, or of the smallest."""
    left = {p: abs(w) for p, w in enumerate(t["W"].flat)}
    found = []
    for _ in range(int(len(left) * (1 - m.sparsity))):
        found.append((max if m.top else min)(left, key=left.__getitem__))
        del left[found[-1]]
    return np.array(found)
