"""AdaMSS: for each cluster of outputs, its rows of B times its A on the input's coordinates in V, a 1 behind the input for the bias."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    def output(x: np.ndarray) -> np.ndarray:
        y, z = t["W"] @ x + t["b"], np.array([row @ x + last for row, last in zip(t["V"], t["v"], strict=True)])
        for k, rank in enumerate(t["ranks"]):
            for i in np.flatnonzero(t["c"] == k):
                y[i] += sum(t["B"][i, j] * (t["A"][k, j] @ z) for j in range(rank))
        return y

    return dict(y=each(output, t["x"]))


def after(m: Any, t: int, T: int, a: Tensors, g: Tensors, fixed: Tensors, kept: dict[Any, Any]) -> Tensors:
    """With asa: the clusters that are still trained, by the scores of all their numbers, one after the other."""
    if not m.asa:
        return a
    A, B, c, ranks, now = a["A"].copy(), a["B"].copy(), fixed["c"], fixed["ranks"], t - 1
    K = len(A)
    live = kept.setdefault("live", np.ones(K, bool))
    for k in range(K):
        if not live[k]:
            A[k], B[c == k] = kept["A"][k], kept["B"][c == k]
    if not m.first <= now <= m.last:
        return dict(A=A, B=B)
    scores = []
    for k in range(K):
        score = 0.0
        for name, w, rows in (("A", A, [k]), ("B", B, [o for o in range(len(c)) if c[o] == k])):
            total, count = 0.0, 0
            for row in rows:
                for at in np.ndindex(w[row].shape):
                    I, (mean, spread) = (
                        live[k] * abs(w[row][at] * g[name][row][at]),
                        kept.get((name, row, at), (0.0, 0.0)),
                    )
                    spread = m.beta2 * spread + (1 - m.beta2) * abs(I - mean)
                    mean = m.beta1 * mean + (1 - m.beta1) * I
                    kept[name, row, at] = mean, spread
                    total, count = total + mean * spread, count + (at[0] < ranks[k])
            score += total / max(count, 1)
        scores.append(score)
    if now % m.interval == 0:
        left = (1 - (now - m.first) / (m.last - m.first)) ** m.gamma
        least = sorted(scores)[max(K - int(m.target + (K - m.target) * left), 0)]
        for key in [key for key in kept if isinstance(key, tuple)]:
            del kept[key]
        kept |= dict(live=live & (np.array(scores) >= least), A=A, B=B)
    return dict(A=A, B=B)
