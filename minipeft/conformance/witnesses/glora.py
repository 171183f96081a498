"""GLoRA: element by element, each path unfolded to its full size."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def _whole(t: Tensors, n: str, *shape: int) -> np.ndarray:
    """What a path stands for, of this shape."""
    full = np.zeros(shape)
    for at in np.ndindex(*shape):
        if n in t:
            path = t[n].reshape(-1)
            full[at] = path[at[0] if len(path) > 1 else 0]
        elif f"{n}d" in t:
            full[at] = sum(
                t[f"{n}d"][at[0], k] * t[f"{n}u"][k, at[-1] if len(at) > 1 else 0] for k in range(t[f"{n}u"].shape[0])
            )
    return full


def closed(m: Any, t: Tensors) -> Tensors:
    out, in_ = t["W"].shape
    A, B = (_whole(t, n, out, in_) for n in "AB")
    C, D, E = _whole(t, "C", in_), _whole(t, "D", out), _whole(t, "E", out)

    def at(x: np.ndarray) -> np.ndarray:
        y = np.zeros(out)
        for o in range(out):
            y[o] = t["b"][o] * (1 + D[o]) + E[o]
            for i in range(in_):
                y[o] += t["W"][o, i] * (x[i] * (1 + A[o, i]) + C[i]) + B[o, i] * x[i]
        return y

    return dict(y=each(at, t["x"]))
