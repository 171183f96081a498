"""Is a gradient right? Compare it with finite differences along random directions, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.engine.backend import to_device, to_host
from minipeft.engine.tensor import value, value_and_grad

U = np.finfo(np.float64).eps / 2  # unit roundoff of float64


@dataclass(frozen=True)
class Check:
    """One direction's outcome: the slope by differences, the slope by the gradient, and how far they may differ."""

    key: str
    slope: float
    gradient: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return abs(self.slope - self.gradient) <= self.tolerance

    def __str__(self) -> str:
        return (
            f"gradient along a random direction of {self.key}: {self.gradient!r}, by differences {self.slope!r}, "
            f"apart by {abs(self.slope - self.gradient):.2e}, allowed {self.tolerance:.2e}"
        )


def gradcheck(
    f: Callable[[dict[str, Any]], Any],
    theta: dict[str, Any],
    *,
    step: float = 1e-4,
    seed: int = 0,
    noise: float = 64.0,
) -> list[Check]:
    """Check `value_and_grad(f)` at theta, one random unit direction for each array. Raises AssertionError if it is wrong.

    The slope is the fourth-order central difference at `step` and at `step/2`, combined by Richardson's rule. The
    tolerance is what is known of its error: the truncation that the two estimates show, and rounding, `noise`·u·|f|
    divided by the step, f being evaluated with an error of a few units in the last place. A function too rough for a
    verdict (tolerance above a thousandth of the gradient's size) raises as well: such a check could not fail.
    """
    rng = np.random.default_rng(seed)
    for k, v in theta.items():
        if v.dtype != np.float64:
            raise TypeError(f"gradcheck needs float64; {k} is {v.dtype}")
    _, grads = value_and_grad(f)(theta)
    checks = []
    for key, x in theta.items():
        if x.size == 0:
            continue
        direction = rng.standard_normal(x.shape)
        direction = to_device(direction / np.linalg.norm(direction.ravel()))

        def at(h: float, key: str = key, x: Any = x, direction: Any = direction) -> float:
            return float(to_host(value(f({**theta, key: x + h * direction}))))

        def difference(h: float, at: Callable = at) -> tuple[float, float]:
            near, far = (at(h), at(-h)), (at(2 * h), at(-2 * h))
            return (8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * h), max(map(abs, near + far))

        scale = max(1.0, float(to_host(abs(x).max())))
        (coarse, _), (fine, size) = difference(step * scale), difference(step * scale / 2)
        slope = fine + (fine - coarse) / 15
        gradient = float(to_host((grads[key] * direction).sum()))
        rounding = noise * U * size / (step * scale)
        checks.append(Check(key, slope, gradient, 2 * abs(fine - coarse) + rounding))
        smooth = 1e-3 * max(float(to_host(abs(grads[key]).max())), abs(slope)) + 100 * rounding
        if not checks[-1].tolerance <= smooth:  # raised, not asserted: `python -O` must not switch it off
            raise AssertionError(f"{key}: too rough to judge, {checks[-1]}")
        if not checks[-1].ok:
            raise AssertionError(str(checks[-1]))
    return checks
