"""LN tuning: a weight of its own in place of the module's, at the linear that the cases have for it."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    return dict(y=each(lambda x: t["gamma"] @ x + t.get("beta", t["b"]), t["x"]))
