"""RoAd: every output is turned with its partner, half a group away."""

from __future__ import annotations

from math import cos, sin
from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    half, out = m.group // 2, len(t["b"])

    def number(which: int, o: int) -> int:
        """Which number of θ and α output o has, for the cosine (0) or the sine (1)."""
        group, within = divmod(o, m.group)
        if m.variant == "1":
            return group * half + within % half
        return o if m.variant == "2" else group * 2 * m.group + which * m.group + within

    def y(x: np.ndarray) -> np.ndarray:
        h, turned = t["W"] @ x + t["b"], np.zeros(out)
        for o in range(out):
            first = o % m.group < half
            c, d = number(0, o), number(1, o)
            turned[o] = t["alpha"][c] * cos(t["theta"][c]) * h[o]
            turned[o] += t["alpha"][d] * sin(t["theta"][d]) * (-h[o + half] if first else h[o - half])
        return turned

    return dict(y=each(y, t["x"]))


TINY = ((dict(group=2), dict(theta=(1,), alpha=(1,))),)
