"""Prompt tuning: the prompt's rows, then the text."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors


def closed(m: Any, t: Tensors) -> Tensors:
    return dict(y=np.array([np.concatenate([t["P"], h]) for h in t["h"]]))
