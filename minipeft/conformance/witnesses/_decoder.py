"""A decoder of attention alone, text by text without its padding, head by head: what witnesses of prompts are used in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, softmax

IGNORE = -100


def layers(t: Tensors) -> range:
    """Its layers."""
    return range(sum(k.startswith("Wq") for k in t))


def decoded(
    t: Tensors,
    *,
    heads: int = 4,
    prompt: Callable[[int], np.ndarray] | None = None,
    labels: Any = (),
    weights: Any = (),
    prefix: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
    start: int = 0,
    beside: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> Tensors:
    """y and the loss. `prompt(row)` are embedded tokens before the text, with labels and weights perhaps; `prefix(layer)` keys and
    values (p, heads of them, e) that all see, the text then starting at `start`; `beside(layer, q)` is added to the heads of q (heads, e).
    """
    y = np.zeros((*t["ids"].shape, len(t["head"])))
    total, count = 0.0, 0
    for row in range(len(y)):
        real = np.flatnonzero(t["mask"][row])
        before = prompt(row) if prompt else np.zeros((0, t["table"].shape[1]))
        p = len(before)
        x = np.concatenate([before, t["table"][t["ids"][row, real]]])
        at = [*range(p), *(t["position_ids"][row, real] + p + start)]
        for i in layers(t):
            x = x + attention(t, i, normed(x) * t[f"norm{i}"], at, heads, prefix, beside)
        logits = normed(x) * t["norm"] @ t["head"].T
        y[row, real] = logits[p:]
        if "labels" not in t:
            continue
        own = [*(labels if len(labels) else [IGNORE] * p), *t["labels"][row, real]]
        weigh = [*(weights if len(weights) else [1.0] * p), *[1.0] * len(real)]
        for k in range(1, len(x)):
            if own[k] != IGNORE:
                total -= weigh[k] * np.log(softmax(logits[k - 1])[own[k]])
                count += 1
    return dict(y=y) | (dict(loss=np.array(total / count)) if count else {})


def normed(x: np.ndarray) -> np.ndarray:
    """By the root of the mean square."""
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)


def turned(x: np.ndarray, at: int) -> np.ndarray:
    """Rotated by its position: number k and number k + e/2 by at · 10000^(−2k/e)."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * at * 10000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def attention(t: Tensors, i: int, u: np.ndarray, at: Any, heads: int, prefix: Any, beside: Any) -> np.ndarray:
    """What layer i adds to each token."""
    e = len(t[f"Wq{i}"]) // heads
    q, k, v = ((u @ t[f"{W}{i}"].T).reshape(len(u), -1, e) for W in ("Wq", "Wk", "Wv"))
    groups = heads // k.shape[1]
    first = prefix(i) if prefix else (np.zeros((0, *k.shape[1:])),) * 2
    out = np.zeros((len(u), heads, e))
    for s in range(len(u)):
        mine = np.array([turned(q[s, h], at[s]) for h in range(heads)])
        for h in range(heads):
            g = h // groups
            keys = [*first[0][:, g], *(turned(k[j, g], at[j]) for j in range(s + 1))]
            w = softmax(np.array([mine[h] @ key for key in keys]) / np.sqrt(e))
            out[s, h] = sum(a * value for a, value in zip(w, [*first[1][:, g], *v[: s + 1, g]], strict=True))
        if beside:
            out[s] += beside(i, mine)
    return out.reshape(len(u), -1) @ t[f"Wo{i}"].T
