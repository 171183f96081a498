"""BEFT: β is added to what the linear gives."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    return dict(y=each(lambda x: t["W"] @ x + t["b"] + t["beta"], t["x"]))


TINY: tuple = (({}, dict(beta=(2,))),)
