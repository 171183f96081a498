"""LoRA: W x + b + s B (A x), and s c if B has a bias."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors, each, scale


def closed(m: Any, t: Tensors) -> Tensors:
    extra = scale(m) * t["c"] if "c" in t else 0.0
    return dict(y=each(lambda x: t["W"] @ x + t["b"] + scale(m) * (t["B"] @ (t["A"] @ x)) + extra, t["x"]))


TINY = (
    (dict(r=2, alpha=3.0), dict(A=(2, 3), B=(2, 2))),
    (dict(r=2, alpha=3.0, rslora=True), dict(A=(2, 3), B=(2, 2))),
)
