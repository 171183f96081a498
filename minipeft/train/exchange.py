"""What the ranks of a training tell one another: the gradients of the adapters, and a few words a step.

A training cuts every batch by rows into parts, as many as it began with ranks. A rank computes some of the parts and is given the
gradients of all; every rank adds them up in the order of the parts and takes the step that follows. So n ranks have bit for
bit what one has that goes through the n parts as micro-batches, and however many ranks go on with it. The base does not travel,
nor do batches: every rank is given the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.engine.backend import to_device, to_host
from minipeft.errors import Bad
from minipeft.train.optimisers import Arrays
from minipeft.train.state import State


class Exchange:
    """How ranks come together. This one is of a single rank, which has nobody to tell.

    A rank that fails tells the others where they next come together: they raise `Bad`, and none waits for it.
    """

    rank, size = 0, 1
    sent = 0  # bytes of gradients that this rank has given

    def begin(self, state: State, identity: Callable[[], Mapping[str, str]]) -> State:
        """The state that all ranks go on from: rank 0's. Raises `Bad` where `identity()`, what is trained on what, differs."""
        return state

    def told(self, word: Any) -> list[Any]:
        """What each rank says, by rank. Raises `Bad` if one has failed or is gone."""
        return [word]

    def gathered(self, mine: Sequence[Arrays], count: int, word: Any, mark: Any) -> tuple[list[Arrays], list[Any]]:
        """The arrays of all `count` parts, `mine` being those of `share(self, count)`, and what each rank says.

        Raises `Bad` unless the ranks have one mark, which tells batches apart.
        """
        return list(mine), [word]

    def met(self, word: Any, mark: Any) -> list[Any]:
        """What each rank says, the marks being the same."""
        words = self.told((mark, word))
        same([mark for mark, _ in words], "was given other batches")
        return [word for _, word in words]


ALONE = Exchange()


def share(exchange: Exchange, count: int) -> range:
    """Which of the parts are this rank's."""
    return shares(exchange.size, count)[exchange.rank]


def shares(ranks: int, count: int) -> list[range]:
    """The parts of each rank: one after another, as evenly as can be."""
    return [range(r * count // ranks, (r + 1) * count // ranks) for r in range(ranks)]


def agree(exchange: Exchange, what: str, word: Any) -> None:
    """Raise `Bad` unless every rank says what rank 0 says."""
    same(exchange.told(word), what)


def same(words: Sequence[Any], what: str) -> None:
    """Raise `Bad` unless the words of all ranks are rank 0's."""
    for rank, word in enumerate(words):
        if word != words[0]:
            raise Bad(f"rank {rank}: {what} than rank 0")


@dataclass(frozen=True)
class Failure:
    """Said in place of a word by a rank that fails, before it leaves."""

    line: str


def failure(why: BaseException) -> Failure:
    """What a rank says that an error ends."""
    return Failure(str(why) if isinstance(why, Bad) else f"{type(why).__name__}: {why}".removesuffix(": "))


def refuse_failures(words: Sequence[Any]) -> None:
    """Raise `Bad` for the first rank that has failed."""
    for rank, word in enumerate(words):
        if isinstance(word, Failure):
            raise Bad(f"rank {rank}: {word.line}" if rank else word.line)


class Packed:
    """Arrays of known shapes and types in bytes, one behind another: as they travel."""

    def __init__(self, like: Mapping[str, Any]) -> None:
        self.like = {k: (tuple(x.shape), np.dtype(x.dtype)) for k, x in like.items()}
        self.nbytes = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.like.values())

    def views(self, memory: Any, at: int = 0) -> dict[str, np.ndarray]:
        """The arrays that lie in this memory from byte `at` on."""
        found, end = {}, at * self.nbytes
        for k, (shape, dtype) in self.like.items():
            n = int(np.prod(shape))
            found[k] = np.frombuffer(memory, dtype, n, end).reshape(shape) if n else np.zeros(shape, dtype)
            end += n * dtype.itemsize
        return found

    def put(self, arrays: Mapping[str, Any], memory: Any, at: int) -> None:
        """Write arrays there, as the part of this number."""
        for k, there in self.views(memory, at).items():
            there[...] = to_host(arrays[k])

    def taken(self, memory: Any, at: int) -> Arrays:
        """A copy of the part of this number, on the device."""
        return {k: to_device(x.copy()) for k, x in self.views(memory, at).items()}


@contextlib.contextmanager
def exchanging(workers: int | str | Exchange) -> Iterator[Exchange]:
    """The exchange that `fit(workers=…)` asks for. Raises `Bad` for one that cannot be had here."""
    if isinstance(workers, Exchange):
        yield workers
    elif workers == 1:
        yield ALONE
    elif workers == "mpi":
        from minipeft.train.mpi import World

        with World() as world:
            yield world
    else:
        from minipeft.train.workers import Workers

        with Workers(workers) as forked:  # type: ignore[arg-type]
            yield forked
