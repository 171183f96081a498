"""TinyLoRA: every random matrix by its own number, one after the other, between the base's directions."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    v = t["v"][t["group"][0]]
    between = sum(v[i] * t["P"][i] for i in range(m.u))
    return dict(y=each(lambda x: t["W"] @ x + t["b"] + t["B"] @ (between @ (t["A"] @ x)), t["x"]))
