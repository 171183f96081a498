"""KaSA: one outer product after the other, those of the base's smallest singular values taken away."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each, scale


def closed(m: Any, t: Tensors) -> Tensors:
    W = t["W"].copy()
    for i in range(m.r):
        W += scale(m) * t["d"][i] * np.outer(t["B"][:, i], t["A"][i]) - np.outer(t["B0"][:, i], t["A0"][i])
    b = t["b"] + (scale(m) * t["c"] if "c" in t else 0.0)
    return dict(y=each(lambda x: W @ x + b, t["x"]))


def removed(m: Any, t: Tensors) -> np.ndarray:
    return t["B0"] @ t["A0"]


def added(m: Any, a: Tensors) -> Tensors:
    D, E = a["B"].T @ a["B"] - np.eye(m.r), a["A"] @ a["A"].T - np.eye(m.r)
    return dict(
        d=2 * m.beta * a["d"],
        B=2 * m.gamma * a["B"] @ D / np.sqrt((D**2).sum()),
        A=2 * m.gamma * E @ a["A"] / np.sqrt((E**2).sum()),
    )
