"""aLoRA: every row is searched from its end; LoRA's output from there on."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, scale


def closed(m: Any, t: Tensors) -> Tensors:
    y = []
    for x, ids in zip(t["x"], t["input_ids"].tolist(), strict=True):
        n, start = len(m.invocation), len(ids)
        for i in reversed(range(len(ids) - n + 1)):
            if tuple(ids[i : i + n]) == m.invocation:
                start = i
                break
        rows = [t["W"] @ v + t["b"] for v in x]
        for i in range(start, len(ids)):
            rows[i] = rows[i] + scale(m) * (t["B"] @ (t["A"] @ x[i]) + t.get("c", 0.0))
        y.append(rows)
    return dict(y=np.array(y))
