"""ln Γ and its derivative ψ for x > 0, of other ops: Stirling's series at x + 10, and the recurrence back from there.

    ln Γ(z) = (z − ½) ln z − z + ½ ln 2π + 1/12z − 1/360z³ + 1/1260z⁵ − 1/1680z⁷ …,    ln Γ(x) = ln Γ(x + 1) − ln x

What is left out is below 10⁻¹² of 1.

>>> import numpy as np
>>> np.exp(lgamma(np.array([1., 5.]))).round(9), digamma(np.array([1.])).round(9)     # 0! and 4!, and less Euler's constant
(array([ 1., 24.]), array([-0.57721566]))
"""

from __future__ import annotations

import math
from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import xp

N = 10


def _shifted(x: Any) -> tuple[Any, Any]:
    """x + N, and x, x + 1, … below it along a last axis."""
    return x + float(N), ops.reshape(x, shape=(*x.shape, 1)) + xp.arange(N, dtype=x.dtype)


def lgamma(x: Any) -> Any:
    """ln Γ(x), element by element."""
    z, below = _shifted(x)
    v = 1 / z
    series = v * (1 / 12 - v * v * (1 / 360 - v * v * (1 / 1260 - v * v / 1680)))
    return (z - 0.5) * ops.log(z) - z + 0.5 * math.log(2 * math.pi) + series - ops.sum(ops.log(below), axis=-1)


def digamma(x: Any) -> Any:
    """ψ(x), element by element."""
    z, below = _shifted(x)
    v = 1 / z
    u = v * v
    series = v / 2 + u * (1 / 12 - u * (1 / 120 - u * (1 / 252 - u / 240)))
    return ops.log(z) - series - ops.sum(1 / below, axis=-1)
