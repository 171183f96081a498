"""DEFT: what is taken out and what is put in, direction by direction; a QR by Householder's reflections, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    return dropped(m, t | {"kept": t["x"]})


def dropped(m: Any, t: Tensors) -> Tensors:
    P, W = t["P"], t["W"].copy()
    Q, Z = (P, P.clip(0)) if m.projector == "relu" else (reflected(P), reflected(P))
    low = np.zeros_like(W)
    for q, z in zip(Q.T, Z.T, strict=True):
        W -= np.outer(q, z @ t["W"])
    for q, row in zip(Q.T, t["R"], strict=True):
        low += (1 if m.alpha is None else m.alpha / len(t["R"])) * np.outer(q, row)
    return dict(y=each(lambda x, kept: W @ x + low @ kept + t["b"], t["x"], t["kept"]))


def reflected(P: np.ndarray) -> np.ndarray:
    """Q of P = Q U: column by column what lies below the pivot is reflected away; a column that has nothing there stays."""
    n, r = P.shape
    left, Q = P.copy(), np.eye(n)
    for k in range(r):
        v = np.concatenate([np.zeros(k), left[k:, k]])
        if not v[k + 1 :].any():
            continue
        v[k] += np.copysign(np.linalg.norm(v), v[k])
        H = np.eye(n) - 2 * np.outer(v, v) / (v @ v)
        left, Q = H @ left, Q @ H
    return Q[:, :r]


TINY = (
    (dict(r=1, alpha=3.0), dict(P=(2, 1), R=(1, 3))),
    (dict(r=1, projector="qr"), dict(P=(2, 1), R=(1, 3))),
)
