"""Trainable tokens: rows of the table are replaced before they are looked up."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors


def closed(m: Any, t: Tensors) -> Tensors:
    W = t["W"].copy()
    for row, token in zip(t["T"], m.tokens, strict=True):
        W[token] = row
    return dict(y=np.array([[W[i] for i in ids] for ids in t["ids"]]))
