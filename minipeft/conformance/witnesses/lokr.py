"""LoKr: every element of the change is α/r times one element of C and one of D."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    C = t["C"] if "C" in t else t["P"] @ t["Q"]
    D = t["D"] if "D" in t else t["B"] @ t["A"]
    rows, columns = D.shape
    W = t["W"].copy()
    for o in range(W.shape[0]):
        for i in range(W.shape[1]):
            W[o, i] += m.alpha / m.r * C[o // rows, i // columns] * D[o % rows, i % columns]
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


TINY = ((dict(r=2, alpha=5.0, factor=2), dict(C=(2, 1), D=(1, 3))),)
