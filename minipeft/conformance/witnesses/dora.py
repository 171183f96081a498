"""DoRA: each row of W + s B A divided by its norm and multiplied by its magnitude."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each, scale


def closed(m: Any, t: Tensors) -> Tensors:
    V = t["W"] + scale(m) * (t["B"] @ t["A"] - (t["B0"] @ t["A0"] if "B0" in t else 0.0))
    W = np.array([t["m"][i] * V[i] / np.sqrt((V[i] ** 2).sum()) for i in range(len(V))])
    extra = scale(m) * t["c"] if "c" in t else 0.0
    return dict(y=each(lambda x: W @ x + t["b"] + extra, t["x"]))


def start_m(m: Any, t: Tensors) -> np.ndarray:
    """The magnitude as training starts: the norm of every row."""
    return np.sqrt(np.einsum("oi,oi->o", t["W"], t["W"]))


TINY = ((dict(r=1, alpha=3.0), dict(A=(1, 3), B=(2, 1), m=(2,))),)
