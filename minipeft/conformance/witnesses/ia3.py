"""(IA)³: l ∘ (W x + b), or W (l ∘ x) + b."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    if "l_ff" in t:
        return dict(y=each(lambda x: t["W"] @ (t["l_ff"] * x) + t["b"], t["x"]))
    return dict(y=each(lambda x: t["l"] * (t["W"] @ x + t["b"]), t["x"]))


TINY: Any = (({}, dict(l=(2,))),)
