"""BD-LoRA: every block by itself, from its own part of the input or into its own part of the output."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each, scale


def closed(m: Any, t: Tensors) -> Tensors:
    N = m.blocks

    def blocks(P: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.concatenate([p @ part for p, part in zip(np.split(P, N), np.split(x, N), strict=True)])

    def change(x: np.ndarray) -> np.ndarray:
        h = blocks(t["A"], x) if m.side == "A" else t["A"] @ x
        return scale(m) * (t["B"] @ h + t.get("c", 0) if m.side == "A" else blocks(t["B"], h))

    return dict(y=each(lambda x: t["W"] @ x + t["b"] + change(x), t["x"]))
