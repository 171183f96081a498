"""DoRA: each row of W + s B A divided by its norm and multiplied by its magnitude."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each, scale


def closed(m: Any, t: Tensors) -> Tensors:
    V = t["W"] + scale(m) * t["B"] @ t["A"]
    W = np.array([t["m"][i] * V[i] / np.sqrt((V[i] ** 2).sum()) for i in range(len(V))])
    extra = scale(m) * t["c"] if "c" in t else 0.0
    return dict(y=each(lambda x: W @ x + t["b"] + extra, t["x"]))
