"""A method trained on the package's base and task, and what it makes of one place, before and after."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.compare import Task, prepare, usual_rate
from minipeft.compare.outcomes import sized
from minipeft.compare.task import start
from minipeft.engine.backend import peak_memory, to_host
from minipeft.engine.tensor import value
from minipeft.errors import Bad, Unfit
from minipeft.method import METHODS, Method, is_weight
from minipeft.model.batch import Batch
from minipeft.run import Run, is_layer
from minipeft.settings import small
from minipeft.train import AdamW, fit

STEPS = 60


@dataclass(frozen=True)
class Seen:
    """What a trained method does at one site.

    A weight: W and W' (out, in). An activation: h and h' (tokens, width) of one text, where W stands for h; it may have grown.
    """

    site: str
    before: np.ndarray
    after: np.ndarray
    weight: bool
    losses: list[float] = field(default_factory=list)
    trained: int = 0
    seconds: float = 0.0  # of a step, the median, of processor time
    peak: int = 0  # bytes, most at once in a step

    @property
    def change(self) -> np.ndarray | None:
        """What was added, None where the two have not one shape."""
        return self.after - self.before if self.after.shape == self.before.shape else None


@cache
def task() -> Task:
    """The package's task, short."""
    return prepare(steps=STEPS, rows=16, held_out=50)


def shown(cls: type[Method], steps: int = STEPS) -> Seen:
    """The method after some steps at its usual rate, at the first place that it changes.

    What needs a language model is trained on plain text. Raises `Bad` where it does not fit the base.
    """
    try:
        begun, batches, text = start(task(), sized(task(), cls)), task().train, task().test[0]
    except Unfit:
        language = task().language
        if language is None:
            raise
        begun, batches, text = attach(language, small(cls, language.arch)), task().text, task().text[0]
    rule = AdamW(lr=usual_rate(cls))
    with peak_memory() as peak:
        fit(begun, batches[:1], steps=1, optimiser=rule, clip=1.0)
    stamps = [time.process_time()]
    done = fit(
        begun, batches, steps=steps, optimiser=rule, schedule="linear", warmup=max(steps // 10, 1), clip=1.0,
        progress=lambda *_: stamps.append(time.process_time()),
    )  # fmt: skip
    losses = [loss - more for loss, more in zip(done.losses, done.penalties, strict=True)]
    found = seen(done.adapted, text)
    return dataclasses.replace(found, losses=losses, seconds=float(np.median(np.diff(stamps))), peak=peak[0])


def looked_at(name: str) -> Seen | str:
    """What `shown` gives for a method of this name, or why it cannot be shown."""
    try:
        return shown(METHODS[name])
    except Bad as why:
        return str(why)


class _Watched(Run):
    """A run that keeps what passes one site, before its methods and after."""

    watched: str = ""
    seen: tuple[Any, Any] | None = None

    def at(self, site: str, h: Any, **facts: Any) -> Any:
        out = super().at(site, h, **facts)
        if site == self.watched:
            self.seen = (h, out)
        return out


def seen(adapted: Adapted, batch: Batch) -> Seen:
    """What the adapter does at the first of its sites that it changes, by the first text of the batch."""
    adapter = adapted.adapters[0]
    sites = [s for s, m in adapter.at.items() if type(m) is type(adapter.method)]
    count = adapter.size - sum(int(adapter.arrays[k].size) for k in adapter.trained if k.startswith("score."))
    found = (_weights if all(is_weight(adapter.at[s]) for s in sites) else _activations)(
        adapted, sites, batch.part([0])
    )
    first = next(found)
    for site, before, after, weight in (first, *found):
        if before.shape != after.shape or not np.array_equal(before, after):
            return Seen(site, before, after, weight, trained=count)
    return Seen(*first, trained=count)


Pair = tuple[str, np.ndarray, np.ndarray, bool]


def _weights(adapted: Adapted, sites: list[str], batch: Batch) -> Iterator[Pair]:
    """Matrices before other parameters, and before biases that a change of a weight brings along."""
    run = adapted.run()
    named = sorted(sites, key=lambda s: run.base(s).ndim < 2)[:8]
    for site in (*named, *(s.removesuffix("weight") + "bias" for s in named if s.endswith("weight"))):
        if (W := run.base(site)) is not None:
            yield site, np.atleast_2d(_plain(W)), np.atleast_2d(_plain(run.param(site))), True


def _activations(adapted: Adapted, sites: list[str], batch: Batch) -> Iterator[Pair]:
    """Into the methods of a site and out of them; where nothing changes there, what comes of it at the end."""
    for site in dict.fromkeys(s.replace(".weight", ".out") for s in sites[:2] if not is_layer(s)):
        without, own = (_passing(a, site, batch) for a in (adapted.using(), adapted))
        yield site, own[0] if own[0].shape != own[1].shape or (own[0] != own[1]).any() else without[1], own[1], False
    ends = [_passing(a, "final.out", batch)[1] for a in (adapted.using(), adapted)]
    yield "final.out", ends[0], ends[1], False


def _passing(adapted: Adapted, site: str, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """What goes into the methods of a site and what comes out, of the only row, (tokens, width)."""
    run = _Watched(adapted)
    run.watched = site
    run.forward(batch)
    assert run.seen is not None, site
    return _rows(run.seen[0]), _rows(run.seen[1])


def _rows(h: Any) -> np.ndarray:
    """(tokens, width) of the only row; of a pair the first, its heads side by side."""
    a = _plain(h[0] if isinstance(h, tuple | list) else h)[0]
    return a if a.ndim == 2 else a.transpose(1, 0, 2).reshape(a.shape[1], -1)


def _plain(a: Any) -> np.ndarray:
    return np.asarray(to_host(value(a)))
