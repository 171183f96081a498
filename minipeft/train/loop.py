"""`fit`: trains the adapters in use, can be killed and resumed, and fetches of each step its loss alone."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.arrays import rate as factor
from minipeft.engine.backend import explained, keep_freed_memory, to_host, xp
from minipeft.engine.fast import loops
from minipeft.engine.tensor import replaceable
from minipeft.engine.weight import held_arrays
from minipeft.errors import Bad, note
from minipeft.merging import digest
from minipeft.method import Method, Step
from minipeft.model.batch import IGNORE, Batch
from minipeft.settings import at_least, check, positive
from minipeft.shown import shortly
from minipeft.train.exchange import ALONE, Exchange, Lying, added, agree, exchanging, scaled, share
from minipeft.train.optimisers import AdamW, Arrays, clipped, rate
from minipeft.train.resume import Checkpoint, identity_of
from minipeft.train.state import State, fetched
from minipeft.train.workers import chosen


@dataclass
class Trained:
    """The outcome of `fit`: the model with its trained arrays, the loss of every step, seconds and tokens of this call.

    `penalties` are what the methods' own terms were of each loss, `ranks` how many processes trained, and `sent` the bytes
    of gradients and of their sums that rank 0 gives the others in a step.
    """

    adapted: Adapted
    losses: list[float]
    seconds: float = 0.0
    tokens: int = 0
    optimiser_bytes: int = 0
    penalties: list[float] = field(default_factory=list)
    ranks: int = 1
    sent: int = 0

    def __repr__(self) -> str:
        fell = f", loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}" if self.losses else ""
        return f"Trained({self.adapted!r}, {len(self.losses)} steps{fell}, {self.seconds:.1f} s)"


@replaceable
def gradients(
    adapted: Adapted, batch: Batch, theta: Mapping[str, Any], rng: np.random.Generator, recompute: bool = False
) -> tuple[Any, Arrays]:
    """Loss and gradients of a micro-batch, in training."""
    return adapted.value_and_grad(batch, theta, train=True, rng=rng, recompute=recompute)


def accumulated(
    adapted: Adapted,
    batches: Sequence[Batch],
    theta: Mapping[str, Any],
    *,
    seed: Sequence[int] = (0, 0),
    by: Callable | None = None,
    exchange: Exchange = ALONE,
    parts: int = 1,
) -> tuple[Any, Mapping[str, Any]]:
    """Loss and gradients of several micro-batches as if they were one batch, each weighted by its counted labels.

    Each is cut by rows into `parts` first, which the ranks of the exchange share out; the gradients of part p of all
    micro-batches are added up, then those of all parts in their order. The loss is a float64 that stays on the device. `by`
    stands for `gradients`; a call of it may overwrite what the one before gave.
    """
    cut = [_pieces(b, parts) for b in batches]
    weights = [[_counted(b, adapted) for b in pieces] for pieces in cut]
    total = sum(map(sum, weights)) or 1
    alone = weights == [[total]]  # the one there is counts whole: no copy is made

    def part(p: int) -> tuple[Any, Mapping[str, Any]]:
        loss: Any = 0.0
        grads: list[Mapping[str, Any]] = []
        for i, (pieces, w) in enumerate(zip(cut, weights)):
            if p < len(pieces):
                rng = np.random.default_rng([*seed, i * parts + p])
                value, found = (by or gradients)(adapted, pieces[p], theta, rng)
                loss = loss + w[p] / total * value.astype(xp.float64)
                grads = [added([*grads, _rows_first(found if alone else scaled(found, w[p] / total))])]
        return loss, grads[0]

    count = max(map(len, cut))
    mine = [part(p) for p in share(exchange, count)]
    word, mark = [loss for loss, _ in mine], None
    if exchange.size > 1:
        word, mark = fetched(word), _mark(batches)
    grads, words = exchange.summed([grads for _, grads in mine], count, word, mark)
    total_loss, *losses = [loss for some in words for loss in some]
    for loss in losses:
        total_loss = total_loss + loss  # not `sum`, which makes up for rounding where these are Python's own numbers
    return total_loss, grads


def _rows_first(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays as they travel: what follows adds numbers up in the order in which they lie."""
    if isinstance(arrays, Lying):
        return arrays
    return {k: xp.ascontiguousarray(x) if x.ndim else x for k, x in arrays.items()}


def _mark(batches: Sequence[Batch]) -> int:
    """A number that other batches, if ranks were given others, are unlikely to have."""
    mark = 0
    for b in batches:
        for name in b.arrays:
            x = np.ascontiguousarray(b.host(name))
            mark = zlib.crc32(x.data, zlib.crc32(f"{name} {x.shape}".encode(), mark))
    return mark


def _pieces(batch: Batch, parts: int) -> list[Batch]:
    """A batch cut by rows into so many, or as many as it has rows."""
    n = min(parts, batch.rows)
    return [batch.part(slice(i * batch.rows // n, (i + 1) * batch.rows // n)) for i in range(n)] if n > 1 else [batch]


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
    recompute: bool = False,
    workers: int | str | Exchange = 1,
    progress: Any = None,
) -> Trained:
    """Train the adapters in use for `steps` steps.

    `batches(t)` gives the micro-batches of step t (from 1), whose gradients are accumulated; a list of batches is gone
    through in turn, one a step. Everything random in step t comes from a generator seeded with (seed, t), so that a run
    that was killed and started again with the same `checkpoint` file ends with the same bytes. The file is written
    atomically every `every` steps and at the end. `progress(t, steps, loss, tokens)` is called after every step.
    Raises `Bad` for a loss that is not finite, a checkpoint of another training, or a GPU without memory left.
    Of a step's numbers the loss alone is fetched from the device, once. With `graph`, on a GPU, a step is recorded once and
    replayed (see `minipeft.train.fast`); `Bad` says what cannot be. With `recompute` the tape keeps what goes into each layer,
    and the backward pass computes the layer again: the same bits, for half as much work again and far less memory.

    With `workers` n each batch is cut by rows into n parts for n processes (`minipeft.train.exchange`): the result is, bit
    for bit, that of the n parts as micro-batches of one process. "auto" takes as many as pay, and says so; "mpi" is for every
    rank of a program that mpiexec started. Progress, files and `Bad` come from rank 0; a training that is resumed
    stays in as many parts as it began in, whatever `workers` says now.
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

    def data() -> Sequence[Batch]:  # of a function's the first step's stand for all
        return give(1) if callable(batches) else batches

    def identity() -> dict[str, str]:
        return identity_of(adapted, data(), optimiser, steps, schedule, warmup, clip, seed)

    if workers == "auto":
        workers, why = chosen(adapted, data())
        note(f"{workers} worker{'s' * (workers > 1)} {why}")
    with exchanging(workers) as exchange:
        if graph and recompute:
            raise Bad("graph beside recompute: expected one of the two; what is recorded computes everything once")
        kept, state.parts = None, exchange.size
        if checkpoint is not None and exchange.rank == 0:
            kept = Checkpoint(Path(checkpoint), adapted, state, identity(), steps)
            kept.restore(state)
        if exchange.size > 1:
            for W in adapted.model.params.values():
                held_arrays(W)  # what lies in a file is read and converted once, before there are more processes
            if loops.single(np.empty(loops.LEAST, adapted.model.dtype)):
                loops.kernels()  # likewise
        state = exchange.begin(state, identity)
        step = STEPPERS[graph](adapted, optimiser, state, factors, clip, exchange, recompute)
        tokens, started, done, sent = 0, time.perf_counter(), len(state.losses), exchange.sent
        for t in range(done + 1, steps + 1):
            micro = give(t)
            at = (optimiser.lr * rate(schedule, t, steps, warmup), clip, seed, t, steps)
            state.penalties.append(adapted.penalty(state.theta))
            loss = step(micro, at)
            state.losses.append(loss)
            tokens += sum(b.tokens for b in micro)
            if (kept is not None or exchange.size > 1) and (t % every == 0 or t == steps):
                _refuse_lost(state, t)
                if exchange.size > 1:
                    agree(exchange, f"has other arrays after step {t}", digest(state.theta))
                if kept is not None and exchange.rank == 0:
                    kept.save(state, t)
            if progress is not None and exchange.rank == 0:
                progress(t, steps, loss, tokens)
        seconds = time.perf_counter() - started
        _refuse_lost(state, steps)
        used = sum(m.nbytes for m in state.moments.values())
        after = adapted.replace(state.theta)
        sent = (exchange.sent - sent) // max(steps - done, 1)
        return Trained(after, state.losses, seconds, tokens, used, fetched(state.penalties), exchange.size, sent)


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
    exchange: Exchange = ALONE,
) -> float:
    """One step, written into the state; returns the loss. `at` is (learning rate, clip, seed, t, steps)."""
    base, clip, seed, t, steps = at
    value, grads = accumulated(adapted, micro, state.theta, seed=(seed, t), by=by, exchange=exchange, parts=state.parts)
    loss = finite_loss(value, t)
    grads = _hook("after_backward", adapted, state, grads, t, steps)
    if clip is not None:
        grads = clipped(grads, clip)
    lr = {k: base * f for k, f in factors.items()}
    state.theta, state.moments = optimiser.step(state.theta, grads, state.moments, t, lr)
    _hook("after_step", adapted, state, grads, t, steps)
    return loss


def _steps(
    adapted: Adapted,
    optimiser: Any,
    state: State,
    factors: Mapping[str, float],
    clip: float | None,
    exchange: Exchange,
    recompute: bool,
) -> Callable[[Sequence[Batch], tuple], float]:
    """What makes one step after another of a state."""

    def by(*given: Any) -> tuple[Any, Arrays]:
        return gradients(*given, recompute)

    return lambda micro, at: one(adapted, micro, state, optimiser, factors, at, by, exchange)


STEPPERS: dict[bool, Callable] = {False: _steps}  # by whether a graph is asked for


def _factor(adapter: Adapter, key: str) -> float:
    site, _, name = key.rpartition(":")
    return factor(adapter.at.get(site, adapter.method), name)  # "": the shared site is the method's own


def _hook(which: str, adapted: Adapted, state: State, grads: Any, t: int, total: int) -> Any:
    """Let every method see the step; returns the gradients, and writes changed arrays into the state."""
    for a in adapted.in_use:
        if getattr(type(a.method), which) is getattr(Method, which):
            continue
        prefix = f"{a.name}/"

        def mine(arrays: Mapping[str, Any], a: Any = a, prefix: str = prefix) -> dict[str, Arrays]:
            own = {k: arrays[prefix + k] for k in a.arrays if k in a.trained}
            return {
                s: v
                for s, v in a.grouped(own).items()
                if not s or a.at[s] is a.method or type(a.at[s]) is type(a.method)
            }

        step = Step(t, total, mine(state.theta), mine(grads), a.grouped(a.stored), state.own[a.name])
        getattr(a.method, which)(step)
        grads = {**grads, **{f"{prefix}{s}:{n}": g for s, group in step.grads.items() for n, g in group.items()}}
        for s, group in step.theta.items():
            for n, x in group.items():
                state.theta[f"{prefix}{s}:{n}"] = x
    return grads
