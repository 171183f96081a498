"""PSOFT: the turn from its powers or its inverse, and the change as a sum over pairs of directions."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    O = t["O"] if "O" in t else turn(m, t["q"])
    W = t["W"].copy()
    for i in range(m.r):
        for j in range(m.r):
            stretched = O[i, j] * (t["beta"][i] if m.scale_out else 1) * (t["alpha"][j] if m.scale_in else 1)
            W += (stretched - (i == j)) * np.outer(t["B"][:, i], t["A"][j])
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


def turn(m: Any, q: np.ndarray) -> np.ndarray:
    Q, given = np.zeros((m.r, m.r)), iter(q)
    for i in range(m.r):
        for j in range(i + 1, m.r):
            Q[i, j] = next(given)
            Q[j, i] = -Q[i, j]
    I = np.eye(m.r)
    if m.cayley == "exact":
        return (I + Q) @ np.linalg.inv(I - Q)
    size = np.sqrt((Q**2).sum())
    if m.eps is not None and size > m.eps:
        Q = Q * m.eps / (size + 1e-12)
    if m.terms < 3:
        return I + (2 * Q if m.terms == 2 else 0)
    last = max(3, m.terms - 1)
    return I + sum((1 if k == last else 2) * np.linalg.matrix_power(Q, k) for k in range(1, last + 1))
