"""GraLoRA: every block of inputs goes through factors of its own to every block of outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    k, q = m.k, m.r // m.k
    n, out = t["A"].shape[1], t["B"].shape[2]

    def y(x: np.ndarray) -> np.ndarray:
        more = np.zeros(k * out) if m.h == 0 else t["G"] @ (t["H"] @ x)
        for i in range(k):
            for j in range(k):
                low = x[i * n : (i + 1) * n] @ t["A"][i][:, j * q : (j + 1) * q]
                more[j * out : (j + 1) * out] += low @ t["B"][j][i * q : (i + 1) * q]
        return t["W"] @ x + t["b"] + m.alpha / (m.r + m.h) * more

    return dict(y=each(y, t["x"]))


TINY = ((dict(r=2, k=1, alpha=5.0), dict(A=(1, 3, 2), B=(1, 2, 2))),)
