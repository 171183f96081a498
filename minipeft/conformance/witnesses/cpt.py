"""CPT: the context's rows as they were trained, then the text."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors
from minipeft.conformance.witnesses._decoder import decoded


def closed(m: Any, t: Tensors) -> Tensors:
    if "ids" in t:
        labels = [i if c and c % 4 == 0 else -100 for i, c in zip(m.tokens, m.types, strict=True)]
        last = sorted({c for c, i in zip(m.types, labels, strict=True) if i != -100}, reverse=True)
        weights = [m.gamma ** (last.index(c) + 1) if c in last else 1.0 for c in m.types]
        return decoded(t, prompt=lambda row: t["P"], labels=labels, weights=weights)
    rows, text = t["P"], t["h"]
    y = np.empty((len(text), len(m.tokens) + text.shape[1], text.shape[2]))
    for i in range(len(m.tokens)):
        y[:, i] = rows[i]
    y[:, len(m.tokens) :] = text
    return dict(y=y)


def radius(m: Any, c: int, d: int) -> float:
    """How far a row of this type may go."""
    return (0.0, m.eps_format, m.eps, m.eps_format)[c % 4] * np.sqrt(d / 2048)


def before(m: Any, t: int, T: int, a: Tensors, g: Tensors, fixed: Tensors, kept: dict[Any, Any]) -> Tensors:
    free = [radius(m, c, 2048) > 0 for c in m.types]
    return dict(P=np.array([row if moves else 0 * row for row, moves in zip(g["P"], free, strict=True)]))


def after(m: Any, t: int, T: int, a: Tensors, g: Tensors, fixed: Tensors, kept: dict[Any, Any]) -> Tensors:
    rows = []
    for row, begun, c in zip(a["P"], fixed["E"], m.types, strict=True):
        off, most = np.sqrt(((row - begun) ** 2).sum()), radius(m, c, len(row))
        rows.append(row if off <= most else begun + (row - begun) * (most / off))
    return dict(P=np.array(rows))
