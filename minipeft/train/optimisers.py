"""Optimisers as frozen dataclasses with a pure step, schedules, and clipping.

An optimiser's state is a flat dict of arrays for the trained arrays alone; what is frozen has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minipeft.engine.backend import xp
from minipeft.engine.tensor import replaceable
from minipeft.errors import Bad, near
from minipeft.settings import Settings, at_least, check, positive, within

Arrays = dict[str, Any]


# --- optimisers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SGD(Settings):
    """θ ← θ − lr (v + λ θ), v ← μ v + g: stochastic gradient descent with momentum μ and decoupled weight decay λ."""

    lr: float = at_least(0, 0.1)
    momentum: float = within("[0, 1)", 0.0)
    weight_decay: float = at_least(0, 0.0)

    def __post_init__(self) -> None:
        check(self, "SGD")

    def init(self, theta: Mapping[str, Any]) -> Arrays:
        """The state before the first step."""
        return {f"v/{k}": xp.zeros_like(x) for k, x in theta.items()} if self.momentum else {}

    def step(
        self, theta: Arrays, grads: Arrays, state: Arrays, t: int, lr: Mapping[str, float]
    ) -> tuple[Arrays, Arrays]:
        """The arrays and the state after step t (from 1); lr gives each array its learning rate."""
        new, state = {}, dict(state)
        for k, x in theta.items():
            v = grads[k]
            if self.momentum:
                v = state[f"v/{k}"] = self.momentum * state[f"v/{k}"] + v
            new[k] = x - lr[k] * v - (lr[k] * self.weight_decay) * x
        return new, state


@dataclass(frozen=True)
class AdamW(Settings):
    """AdamW (Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101, algorithm 2).

    m ← β₁ m + (1−β₁) g;  v ← β₂ v + (1−β₂) g²;  θ ← θ − lr (m̂ / (√v̂ + ε) + λ θ), m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ).
    """

    lr: float = at_least(0, 1e-3)
    beta1: float = within("[0, 1)", 0.9)
    beta2: float = within("[0, 1)", 0.999)
    eps: float = within("[1e-30, 1]", 1e-8)  # 0 in float32 below that, and 0/0 where a gradient is 0
    weight_decay: float = at_least(0, 0.0)

    def __post_init__(self) -> None:
        check(self, "AdamW")

    def init(self, theta: Mapping[str, Any]) -> Arrays:
        """The state before the first step: both moments, zero."""
        return {f"{moment}/{k}": xp.zeros_like(x) for moment in "mv" for k, x in theta.items()}

    def step(
        self, theta: Arrays, grads: Arrays, state: Arrays, t: int, lr: Mapping[str, float]
    ) -> tuple[Arrays, Arrays]:
        """The arrays and the state after step t (from 1); lr gives each array its learning rate."""
        return adamw(theta, grads, state, t, lr, self)


@replaceable
def adamw(
    theta: Arrays, grads: Arrays, state: Arrays, t: int, lr: Mapping[str, float], o: AdamW
) -> tuple[Arrays, Arrays]:
    """Step t of AdamW with the settings of `o`: the arrays and both moments after it."""
    new: Arrays = {}
    after: Arrays = {}
    for k, x in theta.items():
        m = after[f"m/{k}"] = o.beta1 * state[f"m/{k}"] + (1 - o.beta1) * grads[k]
        v = after[f"v/{k}"] = o.beta2 * state[f"v/{k}"] + (1 - o.beta2) * grads[k] ** 2
        m_hat, v_hat = m / (1 - o.beta1**t), v / (1 - o.beta2**t)
        new[k] = x - lr[k] * (m_hat / (xp.sqrt(v_hat) + o.eps) + o.weight_decay * x)
    return new, after


@dataclass(frozen=True)
class Adafactor(Settings):
    """Adafactor (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235, algorithms 4 and 5), without momentum.

    A matrix keeps the row and column means of its squared gradients instead of all of them; updates are clipped to
    root mean square `clip` and scaled by the root mean square of the array where `relative` is on.
    """

    lr: float = at_least(0, 1e-2)
    eps1: float = within("[1e-30, 1]", 1e-30)
    eps2: float = within("[1e-30, 1]", 1e-3)
    decay: float = within("[0, 1]", 0.8)  # β₂ at step t is 1 − t^−decay
    clip: float = positive(1.0)
    relative: bool = True
    weight_decay: float = at_least(0, 0.0)

    def __post_init__(self) -> None:
        check(self, "Adafactor")

    def init(self, theta: Mapping[str, Any]) -> Arrays:
        """The state before the first step: row and column means for matrices, all second moments for the rest."""
        state: Arrays = {}
        for k, x in theta.items():
            if x.ndim >= 2:
                state[f"row/{k}"] = xp.zeros(x.shape[:-1], x.dtype)
                state[f"col/{k}"] = xp.zeros((*x.shape[:-2], x.shape[-1]), x.dtype)
            else:
                state[f"v/{k}"] = xp.zeros_like(x)
        return state

    def step(
        self, theta: Arrays, grads: Arrays, state: Arrays, t: int, lr: Mapping[str, float]
    ) -> tuple[Arrays, Arrays]:
        """The arrays and the state after step t (from 1); lr gives each array its learning rate."""
        new: Arrays = {}
        after: Arrays = {}
        beta = 1 - t**-self.decay
        for k, x in theta.items():
            if not x.size:
                new[k], after = x, after | {s: state[s] for s in state if s.endswith("/" + k)}
                continue
            square = grads[k] ** 2 + self.eps1
            if x.ndim >= 2:
                row = after[f"row/{k}"] = beta * state[f"row/{k}"] + (1 - beta) * square.mean(axis=-1)
                col = after[f"col/{k}"] = beta * state[f"col/{k}"] + (1 - beta) * square.mean(axis=-2)
                v = (row / row.mean(axis=-1, keepdims=True))[..., :, None] * col[..., None, :]
            else:
                v = after[f"v/{k}"] = beta * state[f"v/{k}"] + (1 - beta) * square
            update = grads[k] / xp.sqrt(v)
            update = update / xp.maximum(xp.sqrt((update * update).mean()) / self.clip, 1)
            if self.relative:
                update = update * xp.maximum(xp.sqrt((x * x).mean()), self.eps2)
            new[k] = x - lr[k] * update - (lr[k] * self.weight_decay) * x
        return new, after


OPTIMISERS = {"sgd": SGD, "adamw": AdamW, "adafactor": Adafactor}


# --- schedules and clipping -----------------------------------------------------------------------------------------


def _constant(x: float) -> float:
    return 1.0


def _linear(x: float) -> float:
    return 1.0 - x


def _cosine(x: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * x))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": _constant, "linear": _linear, "cosine": _cosine}


def rate(schedule: str, t: int, total: int, warmup: int = 0) -> float:
    """Factor on the learning rate at step t (from 1): rising over `warmup` steps, then falling to 0 after `total`.

    >>> [round(rate("linear", t, 6, warmup=2), 2) for t in (1, 2, 3, 6)]
    [0.5, 1.0, 1.0, 0.25]
    """
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        raise Bad(f"schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}{near(str(schedule), SCHEDULES)}")
    if t <= warmup:
        return t / warmup
    return SCHEDULES[schedule]((t - 1 - warmup) / max(total - warmup, 1))


def global_norm(grads: Mapping[str, Any]) -> Any:
    """√Σ‖g‖² over all arrays, a float64 that stays on the device."""
    squares = [(g * g).sum().astype(xp.float64) for g in grads.values()]
    return xp.sqrt(sum(squares, xp.zeros(())))


def clipped(grads: Arrays, limit: float) -> Arrays:
    """The gradients scaled down to global norm `limit` if they exceed it (Pascanu et al. 2012, arXiv 1211.5063, §3.2)."""
    scale = limit / xp.maximum(global_norm(grads), limit)
    return {k: g * scale.astype(g.dtype) for k, g in grads.items()}
