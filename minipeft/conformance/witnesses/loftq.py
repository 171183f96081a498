"""LoftQ: LoRA's over the quantised weight; it starts from what quantising loses."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, scale
from minipeft.conformance.witnesses.qlora import closed

__all__ = ["closed", "start_BA"]

CODES = np.array(  # as every four-bit checkpoint has them
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip


def start_BA(m: Any, t: Tensors) -> np.ndarray:
    """B A as training starts, after one round: the part of W − Q along its first r directions, each value of Q by trying all codes."""
    flat = t["W"].ravel()
    Q = np.empty_like(flat)
    for at in range(0, flat.size, m.block):
        own = flat[at : at + m.block]
        codes = CODES * abs(own).max()
        Q[at : at + m.block] = codes[abs(own[:, None] - codes).argmin(axis=1)]
    lost = t["W"] - Q.reshape(t["W"].shape).astype(np.float32)
    V = np.linalg.eigh(lost.T @ lost)[1][:, ::-1][:, : m.r]
    return lost @ V @ V.T / (scale(m) if m.reading == "paper" else 1.0)
