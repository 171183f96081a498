"""VB-LoRA: every number of the factors by its piece, its place in the piece, and the largest logits one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    bank, length = t["bank"], m.vector_length

    def number(factor: str, at: tuple[int, int], place: int) -> float:
        if m.only_topk:
            T, p = list(t[f"chosen_{factor}"][at]), list(t[f"shares_{factor}"][at])
            p.append(1 - sum(p))
        else:
            z = t[f"logits_{factor}"][at]
            T = sorted(range(len(z)), key=lambda s: z[s])[-m.topk :]
            p = [np.exp(z[s]) / sum(np.exp(z[u]) for u in T) for s in T]
        return sum(share * bank[s, place] for s, share in zip(T, p, strict=True))

    out, in_ = t["W"].shape
    A = np.array([[number("A", (k, j // length), j % length) for j in range(in_)] for k in range(m.r)])
    B = np.array([[number("B", (i // length, k), i % length) for k in range(m.r)] for i in range(out)])
    return dict(y=each(lambda x: t["W"] @ x + t["b"] + B @ (A @ x), t["x"]))
