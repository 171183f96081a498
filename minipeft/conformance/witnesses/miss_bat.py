"""MiSS-BAT: block by block, W + W B + B."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    W, r = t["W"].copy(), m.r
    for o in range(0, W.shape[0], r):
        B = t["B"][o // r]
        for i in range(0, W.shape[1], r):
            W[o : o + r, i : i + r] += W[o : o + r, i : i + r] @ B + B
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


TINY = ((dict(r=1), dict(B=(2, 1, 1))),)
