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
    group: Callable[[str], str] = str,
) -> list[Check]:
    """Check `value_and_grad(f)` at theta, one random unit direction for each array. Raises AssertionError if it is wrong.

    Arrays for which `group` gives the same name are moved together. The slope is the fourth-order central difference at
    `step` and at `step/2`, combined by Richardson's rule. The tolerance is what is known of its error: the truncation that
    the two estimates show, and rounding, `noise`·u·|f| divided by the step, f being evaluated with an error of a few units
    in the last place. A function too rough for a verdict (tolerance above a thousandth of the gradient's size) raises as
    well: such a check could not fail.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str, list[str]] = {}
    for k, v in theta.items():
        if v.dtype != np.float64:
            raise TypeError(f"gradcheck needs float64; {k} is {v.dtype}")
        if v.size:
            groups.setdefault(group(k), []).append(k)
    _, grads = value_and_grad(f)(theta)
    checks = []
    for name, keys in groups.items():
        drawn = {k: rng.standard_normal(theta[k].shape) for k in keys}
        length = sum(float((d * d).sum()) for d in drawn.values()) ** 0.5
        direction = {k: to_device(d / length) for k, d in drawn.items()}

        def at(h: float, direction: dict = direction) -> float:
            return float(to_host(value(f(theta | {k: theta[k] + h * d for k, d in direction.items()}))))

        def difference(h: float, at: Callable = at) -> tuple[float, float]:
            near, far = (at(h), at(-h)), (at(2 * h), at(-2 * h))
            return (8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * h), max(map(abs, near + far))

        scale = max(1.0, *(float(to_host(abs(theta[k]).max())) for k in keys))
        (coarse, _), (fine, size) = difference(step * scale), difference(step * scale / 2)
        slope = fine + (fine - coarse) / 15
        gradient = sum(float(to_host((grads[k] * d).sum())) for k, d in direction.items())
        largest = max(float(to_host(abs(grads[k]).max())) for k in keys)
        rounding = noise * U * size / (step * scale)
        checks.append(Check(name, slope, gradient, 2 * abs(fine - coarse) + rounding))
        smooth = 1e-3 * max(largest, abs(slope)) + 100 * rounding
        if not checks[-1].tolerance <= smooth:  # raised, not asserted: `python -O` must not switch it off
            raise AssertionError(f"{name}: too rough to judge, {checks[-1]}")
        if not checks[-1].ok:
            raise AssertionError(str(checks[-1]))
    return checks
