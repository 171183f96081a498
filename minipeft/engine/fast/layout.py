"""Where the numbers of an array lie, so that what follows copies nothing."""

from __future__ import annotations

import math
from typing import Any

from minipeft.engine.backend import xp
from minipeft.engine.tensor import Array


def heads_last(b: int, t: int, h: int, d: int, dtype: Any) -> Array:
    """An empty (b, h, t, d) array laid out in memory as (b, t, h, d): joining the heads copies nothing."""
    return xp.swapaxes(xp.empty((b, t, h, d), dtype), 1, 2)


def in_blocks(x: Array, K: int, one: bool) -> Array:
    """x (..., K w) as (K, n, w), a view; as (1, n K, w) where one matrix multiplies every block."""
    n, w = math.prod(x.shape[:-1]), x.shape[-1] // K
    return x.reshape(1, n * K, w) if one else xp.swapaxes(x.reshape(n, K, w), 0, 1)
