"""Training: optimisers as frozen dataclasses with a pure step, schedules, and `fit`, which can be killed and resumed.

An optimiser's state is a flat dict of arrays for the trained arrays alone; what is frozen has none.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.engine.backend import explained, keep_freed_memory, to_device, to_host, xp
from minipeft.engine.fast.blocks import sharing_cores
from minipeft.errors import Bad, near
from minipeft.method import Method, Step
from minipeft.model.arch import IGNORE, Batch
from minipeft.model.graph import Replay, recorder
from minipeft.run import Adapted, Adapter, digest
from minipeft.settings import at_least, check, positive, within

Arrays = dict[str, Any]


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


# --- optimisers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SGD:
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
class AdamW:
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
        new, after = Joined(theta), Joined(state)
        fix1, fix2 = 1 - self.beta1**t, math.sqrt(1 - self.beta2**t)
        for keys in runs(theta, lr):
            x, g = joined(theta, keys), joined(grads, keys)
            m = self.beta1 * joined(state, [f"m/{k}" for k in keys])
            m += (1 - self.beta1) * g
            v = self.beta2 * joined(state, [f"v/{k}" for k in keys])
            v += (1 - self.beta2) * (g * g)
            update = xp.sqrt(v)
            update /= fix2
            update += self.eps
            xp.divide(m, update, out=update)
            eta = lr[keys[0]]
            update *= -eta / fix1
            update += (1 - eta * self.weight_decay) * x
            shapes = [theta[k].shape for k in keys]
            new.add(keys, update, shapes)
            after.add([f"m/{k}" for k in keys], m, shapes)
            after.add([f"v/{k}" for k in keys], v, shapes)
        return new, after


@dataclass(frozen=True)
class Adafactor:
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


# --- fit ------------------------------------------------------------------------------------------------------------


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


@dataclass
class State:
    """What the steps of a training change: the trained arrays, the optimiser's moments, what methods keep, the losses."""

    theta: Arrays
    moments: Arrays
    own: dict[str, Arrays] = field(default_factory=dict)  # of each adapter's method
    losses: list[float] = field(default_factory=list)
    penalties: list[Any] = field(default_factory=list)  # perhaps still on the device


def accumulated(
    adapted: Adapted,
    batches: Sequence[Batch],
    theta: Mapping[str, Any],
    *,
    seed: Sequence[int] = (0, 0),
    gradients: Callable | None = None,
) -> tuple[Any, Arrays]:
    """Loss and gradients of several micro-batches as if they were one batch, each weighted by its counted labels.

    The loss is a float64 that stays on the device. `gradients` stands for `adapted.value_and_grad`; a call of it may overwrite
    what the one before gave.
    """
    gradients = gradients or adapted.value_and_grad
    weights = [_counted(b, adapted) for b in batches]
    total = sum(weights) or 1
    loss: Any = 0.0
    grads: Arrays = {}
    for i, (batch, w) in enumerate(zip(batches, weights)):
        rng = np.random.default_rng([*seed, i])
        value, part = gradients(batch, theta, train=True, rng=rng)
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
    replayed as one CUDA graph, or its gradients are where more happens than AdamW (see `Recorded`); `Bad` says what cannot be.
    """
    keep_freed_memory()
    check(_Asked(steps, warmup, clip, every), "fit")
    optimiser = optimiser or AdamW()
    give = batches if callable(batches) else lambda t: [batches[(t - 1) % len(batches)]]  # type: ignore[index]
    theta = dict(adapted.theta)
    if not theta:
        raise Bad("nothing to train: no adapter in use has trained arrays")
    state = State(theta, optimiser.init(theta), {a.name: {} for a in adapted.in_use})
    factors = {f"{a.name}/{k}": _factor(a, k) for a in adapted.in_use for k in a.trained}
    done, identity = 0, {}
    if checkpoint is not None:
        data = give(1) if callable(batches) else batches  # of a function's data the first step's stand for all
        identity = _identity(adapted, data, optimiser, steps, schedule, warmup, clip, seed)
        if Path(checkpoint).exists():
            done = _restore(Path(checkpoint), state, identity)
    recorded = Recorded(adapted, optimiser, state, factors, clip) if graph else None
    largest = largest_matrix(adapted)
    tokens, started = 0, time.perf_counter()
    for t in range(done + 1, steps + 1):
        micro = give(t)
        at = (optimiser.lr * rate(schedule, t, steps, warmup), clip, seed, t, steps)
        state.penalties.append(adapted.penalty(state.theta))
        if recorded is not None:
            loss = recorded.step(micro, at)
        else:
            loss = _one(adapted, micro, state, optimiser, factors, at, largest)
        state.losses.append(loss)
        tokens += sum(b.tokens for b in micro)
        if checkpoint is not None and (t % every == 0 or t == steps):
            _save(Path(checkpoint), state, identity, t)
        if progress is not None:
            progress(t, steps, loss, tokens)
    seconds = time.perf_counter() - started
    # the last step has no loss after it to show what became of the arrays
    finite = _fetched([xp.isfinite(x).all() for x in state.theta.values()])
    if lost := [k for k, held in zip(state.theta, finite) if not held]:
        raise Bad(f"step {steps}: {lost[0]} is no longer finite; lower the learning rate or clip the gradients")
    used = sum(m.nbytes for m in state.moments.values())
    return Trained(adapted.replace(state.theta), state.losses, seconds, tokens, used, _fetched(state.penalties))


def _fetched(numbers: Sequence[Any]) -> list[float]:
    """Numbers of the device, and of the host among them, fetched at once."""
    there = [x for x in numbers if hasattr(x, "dtype")]
    found = iter(to_host(xp.stack([x.astype(xp.float64) for x in there])) if there else ())
    return [float(next(found) if hasattr(x, "dtype") else x) for x in numbers]


def _finite(value: Any, t: int) -> float:
    """The loss of step t, fetched. Raises `Bad` if it is not finite."""
    loss = float(to_host(value))
    if not math.isfinite(loss):
        raise Bad(f"step {t}: the loss is {loss}; lower the learning rate or clip the gradients")
    return loss


def _one(
    adapted: Adapted,
    micro: Sequence[Batch],
    state: State,
    optimiser: Any,
    factors: Mapping[str, float],
    at: tuple,
    largest: int,
    gradients: Callable | None = None,
) -> float:
    """One step, written into the state; returns the loss. `at` is (learning rate, clip, seed, t, steps)."""
    base, clip, seed, t, steps = at
    with sharing_cores(2 * largest * max(b.tokens for b in micro)):
        value, grads = accumulated(adapted, micro, state.theta, seed=(seed, t), gradients=gradients)
    loss = _finite(value, t)
    grads = _hook("after_backward", adapted, state, grads, t, steps)
    if clip is not None:
        grads = clipped(grads, clip)
    lr = {k: base * f for k, f in factors.items()}
    state.theta, state.moments = optimiser.step(state.theta, grads, state.moments, t, lr)
    _hook("after_step", adapted, state, grads, t, steps)
    return loss


class Recorded:
    """The steps of a training by graphs; the arrays that change stay where they are.

    A step of AdamW on one batch, between whose steps no method acts, is one graph. Of any other step a graph holds the loss and
    the gradients of a micro-batch.
    """

    def __init__(
        self, adapted: Adapted, optimiser: Any, state: State, factors: Mapping[str, float], clip: float | None
    ) -> None:
        self.adapted, self.optimiser, self.state, self.factors, self.clip = adapted, optimiser, state, factors, clip
        # rows first, as `adamw` reads them
        self.theta = {k: xp.empty(x.shape, x.dtype) for k, x in state.theta.items()}
        self.moments = {k: xp.empty(x.shape, x.dtype) for k, x in state.moments.items()}
        self._back_in_place()
        self.t, self.lr = xp.zeros((), xp.int32), xp.zeros((), xp.float64)
        arch, changes = adapted.model.arch, (*self.theta.values(), *self.moments.values())
        self.gradients = Replay(arch, self._gradients)
        self.whole = Replay(arch, self._whole, changes=changes)
        self.plain = type(optimiser) is AdamW and not any(a.method.intervenes for a in adapted.in_use)

    def step(self, micro: Sequence[Batch], at: tuple) -> float:
        """One step; returns the loss. `at` is (learning rate, clip, seed, t, steps)."""
        base, _, seed, t, _ = at
        if not self.plain or len(micro) != 1:
            replayed = lambda batch, theta, *, train, rng: self.gradients(batch, rng)
            loss = _one(self.adapted, micro, self.state, self.optimiser, self.factors, at, 0, replayed)
            self._back_in_place()
            return loss
        self.t.fill(t)
        self.lr.fill(base)
        return _finite(self.whole(micro[0], np.random.default_rng([seed, t, 0])), t)

    def _gradients(self, batch: Batch, rng: Any) -> tuple[Any, Arrays]:
        return self.adapted.value_and_grad(batch, self.theta, train=True, rng=rng)

    def _whole(self, batch: Batch, rng: Any) -> Any:
        loss, grads = self._gradients(batch, rng)
        if self.clip is not None:
            grads = clipped(grads, self.clip)
        for k, x in self.theta.items():
            moments = self.moments[f"m/{k}"], self.moments[f"v/{k}"]
            recorder().adamw(x, grads[k], *moments, self.t, self.lr, self.factors[k], self.optimiser)
        return loss

    def _back_in_place(self) -> None:
        """Copy what the state holds to where the graphs read it."""
        for there, found in ((self.theta, self.state.theta), (self.moments, self.state.moments)):
            for k, x in there.items():
                x[...] = found[k]
        self.state.theta, self.state.moments = dict(self.theta), dict(self.moments)


def largest_matrix(adapted: Adapted) -> int:
    """How many numbers the base's largest matrix holds."""
    return max((math.prod(W.shape) for W in adapted.model.params.values() if len(W.shape) == 2), default=0)


def _factor(adapter: Adapter, key: str) -> float:
    site, _, name = key.rpartition(":")
    return adapter.at.get(site, adapter.method).lr(name)  # "": the shared site is the method's own


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


# --- checkpoints of a training ---------------------------------------------------------------------------------------


def _identity(adapted: Adapted, data: Sequence[Batch], optimiser: Any, *settings: Any) -> dict[str, str]:
    arrays = {f"{i}:{k}": v for i, b in enumerate(data) for k, v in b.arrays.items()}
    return {
        "base": adapted.model.digest(),
        "adapters": repr([(a.name, a.method, dict(a.at), sorted(a.trained)) for a in adapted.in_use]),
        "start": digest({f"{a.name}/{k}": v for a in adapted.in_use for k, v in a.arrays.items()}),
        "data": digest(arrays),
        "optimiser": repr(optimiser),
        "settings": repr(settings),
    }


def _save(path: Path, state: State, identity: dict[str, str], t: int) -> None:
    from minipeft.checkpoints.files import write_tensors

    tensors = {f"theta:{k}": v for k, v in state.theta.items()} | {f"moments:{k}": v for k, v in state.moments.items()}
    tensors |= {f"own:{name}:{k}": v for name, own in state.own.items() for k, v in own.items()}
    tensors["losses"] = np.asarray(state.losses, np.float64)
    tensors["penalties"] = np.asarray(_fetched(state.penalties), np.float64)
    host = {k: np.ascontiguousarray(to_host(v)) for k, v in tensors.items()}
    write_tensors(path, host, {"training": json.dumps(identity | {"step": t}, sort_keys=True)})


def _restore(path: Path, state: State, identity: dict[str, str]) -> int:
    """Fill the state from a file and return the step it was written after. Raises `Bad` if it belongs to another training."""
    from minipeft.checkpoints.files import read_header, read_tensors

    about = read_header(path).get("__metadata__", {})
    try:
        found = dict(json.loads(about["training"]))
    except (KeyError, TypeError, ValueError):
        raise Bad(f"{path}: expected the checkpoint of a training, found another file") from None
    for key, expected in identity.items():
        if found.get(key) != expected:
            raise Bad(
                f"{path}: this checkpoint is of another training: its {key} differs; remove the file to start afresh"
            )
    for name, a in read_tensors(path).items():
        kind, _, rest = name.partition(":")
        if kind == "theta":
            state.theta[rest] = to_device(a)
        elif kind == "moments":
            state.moments[rest] = to_device(a)
        elif kind == "own":
            adapter, _, key = rest.partition(":")
            state.own[adapter][key] = to_device(a)
        else:
            setattr(state, kind, [float(x) for x in a])
    return found["step"]


def progress_bar(label: str = "training") -> tuple[Any, Callable]:
    """A rich progress bar with loss, tokens per second and time left, and the callback for `fit`; use it as a context.

    It is drawn on standard error, and only if that is a terminal.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        raise Bad("a progress bar needs rich: pip install rich") from None
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task(label, total=None, loss=float("nan"), speed=0.0)
    started = time.perf_counter()

    def update(t: int, total: int, loss: float, tokens: int) -> None:
        bar.update(task, completed=t, total=total, loss=loss, speed=tokens / max(time.perf_counter() - started, 1e-9))

    return bar, update
