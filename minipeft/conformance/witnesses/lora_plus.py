"""LoRA+: LoRA's, for it learns in another way and computes the same."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses.lora import closed

__all__ = ["closed", "rates"]


def rates(m: Any) -> dict[str, float]:
    return dict(B=m.ratio, c=m.ratio)
