"""PVeRA: λ_b ∘ (B μ), μ the first half of λ_d ∘ (A x), from the shared matrices' corner."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    out, in_ = t["W"].shape

    def middle(x: Any) -> Any:
        return sum((t["lambda_d"][k] * (t["A"][k, :in_] @ x)) * t["B"][:out, k] for k in range(m.r))

    return dict(y=each(lambda x: t["W"] @ x + t["b"] + t["lambda_b"] * middle(x), t["x"]))
