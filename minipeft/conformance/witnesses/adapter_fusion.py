"""AdapterFusion: every token attends over the outputs of its adapters."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, bottleneck, each, softmax


def closed(m: Any, t: Tensors) -> Tensors:
    def at(a: np.ndarray, x: np.ndarray) -> np.ndarray:
        z = [bottleneck(part, t, x + a, str(k)) for k, part in enumerate(m.adapters)]
        ask = t["Q"] @ (x + a if m.query == "input" else a) + t["q"]
        weights = softmax(np.array([ask @ (t["Kz"] @ zk + t["kz"]) for zk in z]))
        return a + sum(w * (t["Vf"] @ zk) for w, zk in zip(weights, z, strict=True))

    return dict(y=each(at, t["a"], t["x"]))


def added(m: Any, a: Tensors) -> Tensors:
    return dict(Vf=2 * m.gamma * (a["Vf"] - np.eye(len(a["Vf"]))))
