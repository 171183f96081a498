"""LoHa: the change is α/r (X₁ Y₁) ∘ (X₂ Y₂)."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    W = t["W"] + m.alpha / m.r * (t["X1"] @ t["Y1"]) * (t["X2"] @ t["Y2"])
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


TINY = ((dict(r=2, alpha=5.0), dict(X1=(2, 2), Y1=(2, 3), X2=(2, 2), Y2=(2, 3))),)
