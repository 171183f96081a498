"""OFT: every run of inputs turned by its block, number by number, the block from powers of Q or an inverse."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    rows = t["Q"]
    turns = [block(m, row, len(rows)) for row in rows]

    def y(x: np.ndarray) -> np.ndarray:
        n = len(turns[0])
        runs = [x[at : at + n] for at in range(0, len(x), n)]
        turned = [sum(run[i] * turns[k % len(turns)][i] for i in range(n)) for k, run in enumerate(runs)]  # x_k R_k
        return t["W"] @ np.concatenate(turned) + t["b"]

    return dict(y=each(y, t["x"]))


def block(m: Any, row: np.ndarray, K: int) -> np.ndarray:
    """R of one row of Q, of K."""
    n = next(n for n in range(2, len(row) + 3) if n * (n - 1) == 2 * len(row))
    Q, given = np.zeros((n, n)), iter(row)
    for i in range(n):
        for j in range(i + 1, n):
            Q[i, j] = next(given)
            Q[j, i] = -Q[i, j]
    if m.coft:
        size, radius = np.sqrt(np.trace(Q.T @ Q)), m.eps / np.sqrt(K)
        Q = Q * min(1, radius / size)
    I = np.eye(n)
    if m.cayley == "exact":
        return (I - Q) @ np.linalg.inv(I + Q)
    if m.terms < 3:
        return I + 2 * (m.terms - 1) * Q
    last = max(3, m.terms - 1)
    return I + sum((1 if k == last else 2) * np.linalg.matrix_power(Q, k) for k in range(1, last + 1))


def after(m: Any, t: int, T: int, a: Tensors, g: Tensors, fixed: Tensors, kept: dict[Any, Any]) -> Tensors:
    """With coft every block is drawn back into its ball."""
    rows, radius = a["Q"], m.eps / np.sqrt(len(a["Q"]))
    size = np.sqrt(2 * (rows**2).sum(axis=1))  # each number of a row stands in its block twice
    return a | dict(Q=rows * np.minimum(1, radius / size)[:, None]) if m.coft else a


TINY = ((dict(block=3, cayley="exact"), dict(Q=(1, 3))),)
