"""The parallel adapter: a + s times the bottleneck of what it reads, token by token."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.witnesses import Tensors, bottleneck, each


def closed(m: Any, t: Tensors) -> Tensors:
    s = m.s * (t["g"][0] if "g" in t else 1.0)
    return dict(y=each(lambda a, h: a + s * bottleneck(m, t, h), t["a"], t["u" if m.reads == "input" else "x"]))
