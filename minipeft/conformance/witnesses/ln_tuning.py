"""LN tuning: every vector less its mean, over its deviation, times γ', plus β'."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    def norm(x: np.ndarray) -> np.ndarray:
        mean = sum(x) / len(x)
        deviation = (sum((v - mean) ** 2 for v in x) / len(x) + 1e-5) ** 0.5
        return np.array([t["gamma"][i] * (x[i] - mean) / deviation + t["beta"][i] for i in range(len(x))])

    return dict(y=each(norm, t["x"]))
