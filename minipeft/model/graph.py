"""Functions of a batch as CUDA graphs: hundreds of launches recorded once, and replayed as one.

A graph reads and writes the same memory at every replay. So a batch is copied to where the first one lay, drawn numbers are
drawn anew into the arrays that the recording read, and what the function returns is found where it was. What the host decided
during the recording holds for the replays: the model asks the host about a batch by `Batch.host` and `Batch.ask` alone, the
answers are noted, and a batch with other answers is recorded apart.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minipeft.engine import backend
from minipeft.engine.backend import explained, to_device
from minipeft.errors import Bad
from minipeft.model.arch import Arch
from minipeft.model.batch import Batch

RECORDERS = {"cupy": "minipeft.engine.fast.graph"}  # module whose `Graph` records on a backend; a stand-in is its own


def recorder() -> Any:
    """The module whose `Graph` records on this backend. Raises `Bad` on the host."""
    if backend.name() == "numpy":
        raise Bad(f"graph: graphs are recorded on the backend cupy alone, found {backend.name()}")
    return importlib.import_module(RECORDERS.get(backend.name(), backend.name()))


def recorded(f: Callable[[], Any], changes: Sequence[Any] = (), pool: Any = None) -> Any:
    """f as a graph, which a call replays; `changes` are arrays that it writes to, now as they were. Raises `Bad` for what cannot be recorded."""
    before = [(x, x.copy()) for x in changes]
    try:
        graph = recorder().Graph(f, pool)
    except RuntimeError as why:
        if "captur" not in str(why):  # what CUDA, CuPy and the stand-in say of anything that a graph cannot hold
            raise
        raise Bad(
            f"graph: something here waits for the host, copies from it or calls what cannot be recorded: {why}"
        ) from None
    for x, was in before:  # what was made before the recording was a rehearsal
        x[...] = was
    return graph


class Replay:
    """f as graphs, one for all batches that look alike to the host; a call records one where none fits, and replays it.

    `f(batch, rng)` computes from the batch, from `rng.random(shape, dtype)`, and from arrays that stay where they are; those
    that it writes to, other than to the same effect each time, are `changes`. `past` counts tokens before the batch, as in
    `Run.forward`. A call returns what f does, arrays alone or in tuples and dicts, in place: the next call overwrites them.
    Raises `Bad` for what cannot be recorded, and for batches of more kinds than MOST.
    """

    MOST = 16  # graphs

    def __init__(
        self, arch: Arch, f: Callable[[Batch, Any], Any], *, changes: Sequence[Any] = (), past: int = 0
    ) -> None:
        recorder()
        self.arch, self.f, self.changes, self.past = arch, f, changes, past
        self.known: list[tuple[_Watched, _Drawn, Any]] = []

    @explained()
    def __call__(self, batch: Batch, rng: np.random.Generator | None = None) -> Any:
        batch.check(self.arch, self.past)
        known = next((k for k in self.known if k[0].fits(batch)), None)
        if known is None:
            graph = self._record(batch, rng)
        else:
            held, drawn, graph = known
            held.take(batch)
            drawn.anew(rng)
        graph()
        return graph.result

    def _record(self, batch: Batch, rng: np.random.Generator | None) -> Any:
        """A new graph for batches like this one, its arrays filled with it."""
        if len(self.known) == self.MOST:
            raise Bad(f"graph: batches of more than {self.MOST} shapes or masks; pad them alike, or go without graph")
        held, drawn = _Watched.of(batch), _Drawn(rng)

        def f() -> Any:
            drawn.used = 0
            return self.f(held, drawn)

        graph = recorded(f, self.changes, self.known[0][2].pool if self.known else None)
        self.known.append((held, drawn, graph))
        return graph


def forward(adapted: Any) -> Callable[[Batch], tuple[Any, Any]]:
    """A forward pass by graph: batch -> (logits, loss), plain arrays of the device, as `adapted.forward` gives them.

    Each is None where the model has no head or the batch no labels. They lie in place: the next call overwrites them.
    Raises `Bad` on the host, and for what cannot be recorded.
    """

    def f(batch: Batch, rng: Any) -> tuple[Any, Any]:
        out = adapted.forward(batch)
        return out.logits, out.loss

    return Replay(adapted.model.arch, f)


@dataclass(frozen=True)
class _Watched(Batch):
    """A batch in place, whose arrays a graph reads; it notes what the model asked the host about it."""

    facts: dict[tuple, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch) -> _Watched:
        arrays = {k: x.copy() for k, x in batch.arrays.items()}
        made_of = {k: (x, batch.host(k)) for k, x in arrays.items() if k in batch.made_of}
        return cls(**arrays, made_of=made_of)

    def host(self, name: str) -> np.ndarray:
        self.facts["is", name] = super().host(name)
        return self.facts["is", name]

    def ask(self, what: str, name: str, *limit: int) -> bool:
        self.facts[what, name, *limit] = super().ask(what, name, *limit)
        return self.facts[what, name, *limit]

    def check(self, arch: Arch, past: int = 0) -> None:
        """Done before, for every batch that is copied here."""

    def fits(self, batch: Batch) -> bool:
        """Whether a batch is of the same shapes and types, and the host would be told the same of it."""
        mine, given = self.arrays, batch.arrays
        return (
            given.keys() == mine.keys()
            and all((x.shape, x.dtype) == (mine[k].shape, mine[k].dtype) for k, x in given.items())
            and all(
                np.array_equal(batch.host(name), fact) if what == "is" else batch.ask(what, name, *limit) == fact
                for (what, name, *limit), fact in self.facts.items()
            )
        )

    def take(self, batch: Batch) -> None:
        """Copy a batch here."""
        for k, x in batch.arrays.items():
            getattr(self, k)[...] = x


class _Drawn:
    """In place of a generator while a graph is recorded: its numbers are arrays of the device that stay where they are."""

    def __init__(self, rng: np.random.Generator | None) -> None:
        self.rng, self.used = rng, 0
        self.arrays: list[tuple[str, Any]] = []  # by what of the generator they are drawn

    def random(self, size: Any = None, dtype: Any = np.float64) -> Any:
        """The next array of numbers in [0, 1), drawn in the first rehearsal. Raises `Bad` for a number of the host."""
        return self._next("random", size, dtype)

    def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> Any:
        """The next array of numbers of N(0, 1), in the same way."""
        return self._next("standard_normal", size, dtype)

    def _next(self, what: str, size: Any, dtype: Any) -> Any:
        if size is None or self.rng is None:
            raise Bad("graph: a number is drawn for the host to decide by, which a graph would not do again")
        if self.used == len(self.arrays):
            self.arrays.append((what, to_device(getattr(self.rng, what)(size, dtype=dtype))))
        self.used += 1
        return self.arrays[self.used - 1][1]

    def __getattr__(self, name: str) -> Any:
        raise Bad(f"graph: rng.{name} is drawn from at every step, and a graph knows random and standard_normal alone")

    def anew(self, rng: np.random.Generator | None) -> None:
        """Draw all numbers again, in the order of the first time."""
        for what, x in self.arrays:
            x[...] = to_device(getattr(rng, what)(x.shape, dtype=x.dtype))
