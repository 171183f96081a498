"""Invertible adapters: the coupling and its inverse, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import ACTIVATIONS, Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    half = t["h"].shape[-1] // 2

    def mlp(h: np.ndarray, W: str, b: str) -> np.ndarray:
        return t[W + "2"] @ ACTIVATIONS[m.f](t[W + "1"] @ h + t[b + "1"]) + t[b + "2"]

    def turn(h: np.ndarray) -> np.ndarray:
        y1 = h[:half] + mlp(h[half:], "F", "c")
        return np.concatenate([y1, h[half:] + mlp(y1, "G", "k")])

    def back(y: np.ndarray) -> np.ndarray:
        x2 = y[half:] - mlp(y[:half], "G", "k")
        return np.concatenate([y[:half] - mlp(x2, "F", "c"), x2])

    return dict(y=each(turn, t["h"]), z=each(back, t["u"]))
