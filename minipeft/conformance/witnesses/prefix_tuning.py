"""Prefix tuning: the second of two layers, rows 2 and 3 of what is flat."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors


def closed(m: Any, t: Tensors) -> Tensors:
    E = t["E"] if "A1" not in t else np.tanh(t["E"] @ t["A1"].T + t["c1"]) @ t["A2"].T + t["c2"]
    b, groups, _, e = t["k"].shape
    rows = E.reshape(m.p, -1, groups, e)
    out = {}
    for i, name in enumerate("kv"):
        prefix = np.array([rows[:, i].transpose(1, 0, 2)] * b)
        out[name] = np.concatenate([prefix, t[name]], axis=2)
    return out
