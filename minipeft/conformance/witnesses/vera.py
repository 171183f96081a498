"""VeRA: W x + b + λ_b ∘ (B (λ_d ∘ (A x))), from the shared matrices' corner."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    out, in_ = t["W"].shape
    A, B = t["A"][:, :in_], t["B"][:out]
    return dict(y=each(lambda x: t["W"] @ x + t["b"] + t["lambda_b"] * (B @ (t["lambda_d"] * (A @ x))), t["x"]))
