"""What makes training fast: many small arrays updated as few, gradients on all cores, steps as CUDA graphs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.arrays import intervenes
from minipeft.engine.backend import name as backend_name
from minipeft.engine.backend import xp
from minipeft.engine.fast import compiled, loops, replaces
from minipeft.engine.fast.blocks import sharing_cores
from minipeft.model.base import largest_matrix
from minipeft.model.batch import Batch
from minipeft.model.graph import Replay, recorded, recorder
from minipeft.train import loop, optimisers
from minipeft.train.exchange import ALONE, Exchange, Lying, Packed
from minipeft.train.loop import accumulated, finite_loss, one
from minipeft.train.optimisers import AdamW, Arrays, clipped
from minipeft.train.state import State

# --- many small arrays as few ----------------------------------------------------------------------------------------

RUN = 1 << 16  # numbers: what an optimiser does with them stays in a core's cache


class Joined(dict):
    """A dict of arrays, in the order of `keys`, some of which lie behind one another in one vector, a run of them."""

    def __init__(self, keys: Iterable[str]) -> None:
        super().__init__(dict.fromkeys(keys))
        self.runs: dict[tuple[str, ...], tuple[Any, list[Any]]] = {}  # the vector, and the entries as they were made

    def add(self, keys: Sequence[str], vector: Any, shapes: Sequence[tuple[int, ...]]) -> None:
        """Enter the parts of a vector under these keys, in these shapes."""
        ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
        parts = [vector[a:b].reshape(s) for a, b, s in zip([0, *ends], ends, shapes)]
        self.update(zip(keys, parts, strict=True))
        self.runs[tuple(keys)] = vector, parts


def joined(arrays: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The arrays of these keys as one vector: the one that they are parts of, if they are, else a copy."""
    vector, parts = getattr(arrays, "runs", {}).get(tuple(keys), (None, []))
    if parts and all(arrays[k] is part for k, part in zip(keys, parts, strict=True)):
        return vector
    flat = [arrays[k].reshape(-1) for k in keys]
    return flat[0] if len(flat) == 1 else xp.concatenate(flat)


def runs(theta: Mapping[str, Any], lr: Mapping[str, float]) -> list[list[str]]:
    """The keys in runs of one dtype and learning rate, of at most RUN numbers; a larger array is a run of its own."""
    last: dict[tuple, tuple[list[str], int]] = {}  # the run that is being filled, and its size
    out: list[list[str]] = []
    for k, x in theta.items():
        kind = x.dtype, lr[k]
        if kind not in last or last[kind][1] + x.size > RUN:
            out.append([])
            last[kind] = out[-1], 0
        keys, size = last[kind]
        keys.append(k)
        last[kind] = keys, size + x.size
    return out


@replaces(optimisers.adamw, "numpy")
@replaces(optimisers.adamw, "cupy")
def adamw(
    theta: Arrays, grads: Arrays, state: Arrays, t: int, lr: Mapping[str, float], o: AdamW
) -> tuple[Arrays, Arrays]:
    """Over runs of arrays, each in few passes; what is given is not written to."""
    new, after = Joined(theta), Joined(state)
    for keys in runs(theta, lr):
        x, g = joined(theta, keys), joined(grads, keys)
        m, v = (joined(state, [f"{moment}/{k}" for k in keys]) for moment in "mv")
        of_run = compiled.adamw if backend_name() == "numpy" and loops.single(x, g, m, v) else _of_run
        update, m, v = of_run(x, g, m, v, t, lr[keys[0]], o)
        shapes = [theta[k].shape for k in keys]
        new.add(keys, update, shapes)
        after.add([f"m/{k}" for k in keys], m, shapes)
        after.add([f"v/{k}" for k in keys], v, shapes)
    return new, after


def _of_run(x: Any, g: Any, m: Any, v: Any, t: int, lr: float, o: AdamW) -> tuple[Any, Any, Any]:
    """A vector after step t, and both its moments."""
    fix1, fix2 = 1 - o.beta1**t, math.sqrt(1 - o.beta2**t)
    m = o.beta1 * m
    m += (1 - o.beta1) * g
    v = o.beta2 * v
    v += (1 - o.beta2) * (g * g)
    update = xp.sqrt(v)
    update /= fix2
    update += o.eps
    xp.divide(m, update, out=update)
    update *= -lr / fix1
    update += (1 - lr * o.weight_decay) * x
    return update, m, v


# --- gradients on all cores -------------------------------------------------------------------------------------------


@replaces(loop.gradients, "numpy")
def gradients(
    adapted: Adapted, batch: Batch, theta: Mapping[str, Any], rng: np.random.Generator, recompute: bool = False
) -> tuple[Any, Arrays]:
    """With the work shared out among threads."""
    with sharing_cores(2 * largest_matrix(adapted.model) * batch.tokens):
        return adapted.value_and_grad(batch, theta, train=True, rng=rng, recompute=recompute)


# --- steps as graphs --------------------------------------------------------------------------------------------------


class Recorded:
    """The steps of a training by graphs; the arrays that change stay where they are.

    A step of AdamW on one batch, between whose steps no method acts, is one graph. Where it is of several micro-batches, or of several
    ranks, a graph holds the loss and the gradients of one of them, and another what is made of their sum. Of any other
    optimiser or method the first of the two is a graph.
    """

    def __init__(
        self,
        adapted: Adapted,
        optimiser: Any,
        state: State,
        factors: Mapping[str, float],
        clip: float | None,
        exchange: Exchange = ALONE,
        recompute: bool = False,  # never
    ) -> None:
        self.adapted, self.optimiser, self.state, self.factors, self.clip = adapted, optimiser, state, factors, clip
        self.exchange = exchange
        # rows first, as `adamw` reads them
        self.theta = {k: xp.empty(x.shape, x.dtype) for k, x in state.theta.items()}
        self.moments = {k: xp.empty(x.shape, x.dtype) for k, x in state.moments.items()}
        self._back_in_place()
        self.t, self.lr = xp.zeros((), xp.int32), xp.zeros((), xp.float64)
        self.changes = (*self.theta.values(), *self.moments.values())
        self.packed = Packed(self.theta)
        self.gradients = Replay(adapted.model.arch, self._gradients)
        self.whole = Replay(adapted.model.arch, self._whole, changes=self.changes)
        self.sums: Lying | None = None  # of all parts' gradients, and the graph that reads them
        self.updates: Any = None
        self.plain = type(optimiser) is AdamW and not any(intervenes(a.method) for a in adapted.in_use)

    def __call__(self, micro: Sequence[Batch], at: tuple) -> float:
        """One step; returns the loss. `at` is (learning rate, clip, seed, t, steps)."""
        base, _, seed, t, _ = at
        if not self.plain:
            loss = one(self.adapted, micro, self.state, self.optimiser, self.factors, at, self._replayed, self.exchange)
            self._back_in_place()
            return loss
        self.t.fill(t)
        self.lr.fill(base)
        if len(micro) == 1 and self.state.parts == 1:
            return finite_loss(self.whole(micro[0], np.random.default_rng([seed, t, 0])), t)
        how: dict[str, Any] = dict(seed=(seed, t), by=self._replayed, exchange=self.exchange, parts=self.state.parts)
        value, grads = accumulated(self.adapted, micro, self.theta, **how)
        loss = finite_loss(value, t)
        if self.sums is None:
            self.sums = self.packed.put(grads, self.packed.vectors())
            self.updates = recorded(lambda: self._update(self.sums), self.changes)
        else:
            self.packed.put(grads, self.sums.vectors)
        self.updates()
        return loss

    def _replayed(self, adapted: Adapted, batch: Batch, theta: Any, rng: Any) -> tuple[Any, Lying]:
        loss, *vectors = self.gradients(batch, rng)
        return loss, Lying(self.packed, dict(zip(self.packed.sizes, vectors, strict=True)))

    def _gradients(self, batch: Batch, rng: Any) -> tuple[Any, ...]:
        loss, grads = self.adapted.value_and_grad(batch, self.theta, train=True, rng=rng)
        return loss, *self.packed.put(grads, self.packed.vectors()).vectors.values()

    def _whole(self, batch: Batch, rng: Any) -> Any:
        loss, grads = self.adapted.value_and_grad(batch, self.theta, train=True, rng=rng)
        self._update(grads)
        return loss

    def _update(self, grads: Any) -> None:
        if self.clip is not None:
            grads = clipped(grads, self.clip)
        many = [
            (x, grads[k], self.moments[f"m/{k}"], self.moments[f"v/{k}"], self.factors[k])
            for k, x in self.theta.items()
        ]
        recorder().adamw(many, self.t, self.lr, self.optimiser)

    def _back_in_place(self) -> None:
        """Copy what the state holds to where the graphs read it."""
        for there, found in ((self.theta, self.state.theta), (self.moments, self.state.moments)):
            for k, x in there.items():
                x[...] = found[k]
        self.state.theta, self.state.moments = dict(self.theta), dict(self.moments)


loop.STEPPERS[True] = Recorded
