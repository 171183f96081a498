"""cond, of the tolerance rule |got − want| ≤ K·u·cond: how much a result moves when every number that enters it is rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minipeft.engine.backend import to_device, to_host
from minipeft.engine.tensor import value
from minipeft.engine.weight import form, widened
from minipeft.model.base import Model


def sensitivity(f: Callable[[Model, dict], Any], model: Model, theta: Mapping[str, Any]) -> float:
    """How much max|f| moves for a relative change of 1 in every number: measured at small random relative changes.

    A base held in bfloat16 is widened for that.
    """
    return sensitivities(lambda m, t: {"": f(m, t)}, model, theta)[""]


def sensitivities(
    f: Callable[[Model, dict], Mapping[str, Any]], model: Model, theta: Mapping[str, Any]
) -> dict[str, float]:
    """The same of each of several results."""
    model = model.astype(model.dtype)
    rng = np.random.default_rng(11)
    half = float(np.finfo(next(iter(theta.values())).dtype if theta else model.dtype).eps) ** 0.5

    def nudge(x: Any) -> Any:
        if form(x):
            return x
        x = widened(x)
        return x * to_device((1 + half * rng.choice([-1.0, 1.0], x.shape)).astype(x.dtype))

    at = {k: to_host(value(x)) for k, x in f(model, dict(theta)).items()}
    worst = {k: float(abs(x).max()) for k, x in at.items()}
    for _ in range(3):
        other = dataclasses.replace(model, params={k: nudge(v) for k, v in model.params.items()})
        for k, there in f(other, {k: nudge(v) for k, v in theta.items()}).items():
            worst[k] = max(worst[k], float(abs(to_host(value(there)) - at[k]).max()) / half)
    return worst
