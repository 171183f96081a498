"""`fit`: trains the adapters in use, can be killed and resumed, and fetches of each step its loss alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.arrays import rate as factor
from minipeft.engine.backend import explained, keep_freed_memory, to_host, xp
from minipeft.engine.tensor import replaceable
from minipeft.errors import Bad
from minipeft.method import Method, Step
from minipeft.model.batch import IGNORE, Batch
from minipeft.settings import at_least, check, positive
from minipeft.shown import shortly
from minipeft.train.optimisers import AdamW, Arrays, clipped, rate
from minipeft.train.resume import Checkpoint, identity_of
from minipeft.train.state import State, fetched


@dataclass
class Trained:
    """The outcome of `fit`: the model with its trained arrays, the loss of every step, seconds and tokens of this call.

    `penalties` are what the methods' own terms were of each loss.
    """

    adapted: Adapted
    losses: list[float]
    seconds: float = 0.0
    tokens: int = 0
    optimiser_bytes: int = 0
    penalties: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        fell = f", loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}" if self.losses else ""
        return f"Trained({self.adapted!r}, {len(self.losses)} steps{fell}, {self.seconds:.1f} s)"


@replaceable
def gradients(adapted: Adapted, batch: Batch, theta: Mapping[str, Any], rng: np.random.Generator) -> tuple[Any, Arrays]:
    """Loss and gradients of a micro-batch, in training."""
    return adapted.value_and_grad(batch, theta, train=True, rng=rng)


def accumulated(
    adapted: Adapted,
    batches: Sequence[Batch],
    theta: Mapping[str, Any],
    *,
    seed: Sequence[int] = (0, 0),
    by: Callable | None = None,
) -> tuple[Any, Arrays]:
    """Loss and gradients of several micro-batches as if they were one batch, each weighted by its counted labels.

    The loss is a float64 that stays on the device. `by` stands for `gradients`; a call of it may overwrite what the one before
    gave.
    """
    weights = [_counted(b, adapted) for b in batches]
    total = sum(weights) or 1
    loss: Any = 0.0
    grads: Arrays = {}
    for i, (batch, w) in enumerate(zip(batches, weights)):
        rng = np.random.default_rng([*seed, i])
        value, part = (by or gradients)(adapted, batch, theta, rng)
        share = w / total
        loss = loss + share * value.astype(xp.float64)
        for k, g in part.items():
            if i == 0:
                grads[k] = g if share == 1 and len(batches) == 1 else g * share
            else:
                grads[k] = grads[k] + g * share
    return loss, grads


def _counted(batch: Batch, adapted: Adapted) -> int:
    if batch.labels is None:
        raise Bad("batch: training needs labels, found none")
    labels = batch.host("labels")
    arch = adapted.model.arch
    if arch.head == "lm" and not arch.encoder_layers:
        labels = labels[:, 1:]
    return int((labels != IGNORE).sum())


@dataclass(frozen=True)
class _Asked:
    """What `fit` is asked for, in numbers."""

    steps: int = at_least(1, 1)
    warmup: int = at_least(0, 0)
    clip: float | None = positive(None)
    every: int = at_least(1, 50)
    seed: int = at_least(0, 0, 1 << 64)


@explained()
def fit(
    adapted: Adapted,
    batches: Callable[[int], Sequence[Batch]] | Sequence[Batch],
    *,
    steps: int,
    optimiser: Any = None,
    schedule: str = "constant",
    warmup: int = 0,
    clip: float | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    every: int = 50,
    graph: bool = False,
    progress: Any = None,
) -> Trained:
    """Train the adapters in use for `steps` steps.

    `batches(t)` gives the micro-batches of step t (from 1), whose gradients are accumulated; a list of batches is gone
    through in turn, one a step. Everything random in step t comes from a generator seeded with (seed, t), so that a run
    that was killed and started again with the same `checkpoint` file ends with the same bytes. The file is written
    atomically every `every` steps and at the end. `progress(t, steps, loss, tokens)` is called after every step.
    Raises `Bad` for a loss that is not finite, a checkpoint of another training, or a GPU without memory left.
    Of a step's numbers the loss alone is fetched from the device, once. With `graph`, on a GPU, a step is recorded once and
    replayed (see `minipeft.train.fast`); `Bad` says what cannot be.
    """
    keep_freed_memory()
    check(_Asked(steps, warmup, clip, every, seed), "fit")
    optimiser = AdamW() if optimiser is None else optimiser
    if not all(hasattr(optimiser, name) for name in ("lr", "init", "step")):
        raise Bad(f"fit: optimiser must have lr, init and step, as AdamW() has, found {shortly(optimiser)}")
    if not callable(batches) and not len(batches):
        raise Bad("fit: expected one batch or more, found none")
    give = batches if callable(batches) else lambda t: [batches[(t - 1) % len(batches)]]  # type: ignore[index]
    theta = dict(adapted.theta)
    if not theta:
        raise Bad("nothing to train: no adapter in use has trained arrays")
    state = State(theta, optimiser.init(theta), {a.name: {} for a in adapted.in_use})
    factors = {f"{a.name}/{k}": _factor(a, k) for a in adapted.in_use for k in a.trained}
    done, kept = 0, None
    if checkpoint is not None:
        data = give(1) if callable(batches) else batches  # of a function's data the first step's stand for all
        identity = identity_of(adapted, data, optimiser, steps, schedule, warmup, clip, seed)
        kept = Checkpoint(Path(checkpoint), adapted, state, identity, steps)
        done = kept.restore(state)
    step = STEPPERS[graph](adapted, optimiser, state, factors, clip)
    tokens, started = 0, time.perf_counter()
    for t in range(done + 1, steps + 1):
        micro = give(t)
        at = (optimiser.lr * rate(schedule, t, steps, warmup), clip, seed, t, steps)
        state.penalties.append(adapted.penalty(state.theta))
        loss = step(micro, at)
        state.losses.append(loss)
        tokens += sum(b.tokens for b in micro)
        if kept is not None and (t % every == 0 or t == steps):
            _refuse_lost(state, t)
            kept.save(state, t)
        if progress is not None:
            progress(t, steps, loss, tokens)
    seconds = time.perf_counter() - started
    _refuse_lost(state, steps)
    used = sum(m.nbytes for m in state.moments.values())
    return Trained(adapted.replace(state.theta), state.losses, seconds, tokens, used, fetched(state.penalties))


def _refuse_lost(state: State, t: int) -> None:
    """Raise `Bad` for arrays that are not finite: where no loss comes after a step, to show what became of them."""
    finite = fetched([xp.isfinite(x).all() for x in state.theta.values()])
    if lost := [k for k, held in zip(state.theta, finite) if not held]:
        raise Bad(f"step {t}: {lost[0]} is no longer finite; lower the learning rate or clip the gradients")


def finite_loss(value: Any, t: int) -> float:
    """The loss of step t, fetched. Raises `Bad` if it is not finite."""
    loss = float(to_host(value))
    if not math.isfinite(loss):
        raise Bad(f"step {t}: the loss is {loss}; lower the learning rate or clip the gradients")
    return loss


def one(
    adapted: Adapted,
    micro: Sequence[Batch],
    state: State,
    optimiser: Any,
    factors: Mapping[str, float],
    at: tuple,
    by: Callable | None = None,
) -> float:
    """One step, written into the state; returns the loss. `at` is (learning rate, clip, seed, t, steps)."""
    base, clip, seed, t, steps = at
    value, grads = accumulated(adapted, micro, state.theta, seed=(seed, t), by=by)
    loss = finite_loss(value, t)
    grads = _hook("after_backward", adapted, state, grads, t, steps)
    if clip is not None:
        grads = clipped(grads, clip)
    lr = {k: base * f for k, f in factors.items()}
    state.theta, state.moments = optimiser.step(state.theta, grads, state.moments, t, lr)
    _hook("after_step", adapted, state, grads, t, steps)
    return loss


def _steps(
    adapted: Adapted, optimiser: Any, state: State, factors: Mapping[str, float], clip: float | None
) -> Callable[[Sequence[Batch], tuple], float]:
    """What makes one step after another of a state."""
    return lambda micro, at: one(adapted, micro, state, optimiser, factors, at)


STEPPERS: dict[bool, Callable] = {False: _steps}  # by whether a graph is asked for


def _factor(adapter: Adapter, key: str) -> float:
    site, _, name = key.rpartition(":")
    return factor(adapter.at.get(site, adapter.method), name)  # "": the shared site is the method's own


def _hook(which: str, adapted: Adapted, state: State, grads: Arrays, t: int, total: int) -> Arrays:
    """Let every method see the step; returns the gradients, and writes changed arrays into the state."""
    for a in adapted.in_use:
        if getattr(type(a.method), which) is getattr(Method, which):
            continue
        prefix = f"{a.name}/"

        def mine(arrays: Arrays, a: Any = a, prefix: str = prefix) -> dict[str, Arrays]:
            own = {k: arrays[prefix + k] for k in a.arrays if k in a.trained}
            return {
                s: v
                for s, v in a.grouped(own).items()
                if not s or a.at[s] is a.method or type(a.at[s]) is type(a.method)
            }

        step = Step(t, total, mine(state.theta), mine(grads), a.grouped(a.stored), state.own[a.name])
        getattr(a.method, which)(step)
        grads = grads | {f"{prefix}{s}:{n}": g for s, group in step.grads.items() for n, g in group.items()}
        for s, group in step.theta.items():
            for n, x in group.items():
                state.theta[f"{prefix}{s}:{n}"] = x
    return grads
