"""What the ranks of a training tell one another: the gradients of the adapters, and a few words a step.

A training cuts every batch by rows into parts, as many as it began with ranks. A rank computes some of the parts; their gradients are
added up in the order of the parts, each number by one of the ranks, which all are given the sums and take the step that follows. So
n ranks have bit for bit what one has that goes through the n parts as micro-batches, and however many ranks go on with
it. The base does not travel, nor do batches: every rank is given the same.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.engine.backend import xp
from minipeft.errors import Bad
from minipeft.train.state import State


class Exchange:
    """How ranks come together. This one is of a single rank, which has nobody to tell.

    A rank that fails tells the others where they next come together: they raise `Bad`, and none waits for it.
    """

    rank, size = 0, 1
    sent = 0  # bytes of gradients and of their sums that this rank has given others

    def begin(self, state: State, identity: Callable[[], Mapping[str, str]]) -> State:
        """The state that all ranks go on from: rank 0's. Raises `Bad` where `identity()`, what is trained on what, differs."""
        return state

    def told(self, word: Any) -> list[Any]:
        """What each rank says, by rank. Raises `Bad` if one has failed or is gone."""
        return [word]

    def summed(
        self, mine: Sequence[Mapping[str, Any]], count: int, word: Any, mark: Any
    ) -> tuple[Mapping[str, Any], list[Any]]:
        """The arrays of all `count` parts added up in their order, `mine` being those of `share(self, count)`, and what each rank says.

        Raises `Bad` unless the ranks have one mark, which tells batches apart.
        """
        return added(mine), [word]

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


# --- arrays that lie together ------------------------------------------------------------------------------------------


class Packed:
    """Where arrays of known shapes and types lie as they travel: those of a type one behind another in a vector."""

    def __init__(self, like: Mapping[str, Any]) -> None:
        self.sizes: dict[Any, int] = {}  # of the vectors, by type
        self.places: dict[str, tuple[Any, slice, tuple[int, ...]]] = {}
        for k, x in like.items():
            dtype, shape = np.dtype(x.dtype), tuple(x.shape)
            start = self.sizes.get(dtype, 0)
            self.sizes[dtype] = start + math.prod(shape)
            self.places[k] = dtype, slice(start, self.sizes[dtype]), shape
        self.nbytes = sum(n * dtype.itemsize for dtype, n in self.sizes.items())

    def put(self, arrays: Mapping[str, Any], vectors: Mapping[Any, Any]) -> Lying:
        """Write arrays there; those that lie in vectors of their own are copied whole."""
        made = Lying(self, vectors)
        if isinstance(arrays, Lying):
            for dtype, vector in vectors.items():
                vector[...] = arrays.vectors[dtype]
        else:
            for k in self.places:
                made[k][...] = arrays[k]
        return made

    def together(self, arrays: Mapping[str, Any]) -> Lying:
        """The arrays in vectors, themselves if they lie so."""
        if isinstance(arrays, Lying):
            return arrays
        return self.put(arrays, self.vectors())

    def vectors(self) -> dict[Any, Any]:
        """Vectors of the device for them, not filled."""
        return {dtype: xp.empty(n, dtype) for dtype, n in self.sizes.items()}

    def given(self, rank: int, ranks: int, parts: int) -> int:
        """Bytes that a rank gives the others, which has so many parts: the shares of those that they add up, and the sums of its own."""
        own = {dtype: len(shares(ranks, n)[rank]) for dtype, n in self.sizes.items()}
        return sum(
            dtype.itemsize * (parts * (n - own[dtype]) + (ranks - 1) * own[dtype]) for dtype, n in self.sizes.items()
        )


class Lying(Mapping):
    """Arrays by name, parts of `vectors`, one for each type. A part is made when it is asked for."""

    def __init__(self, packed: Packed, vectors: Mapping[Any, Any]) -> None:
        self.packed, self.vectors = packed, vectors

    def __getitem__(self, name: str) -> Any:
        dtype, at, shape = self.packed.places[name]
        return self.vectors[dtype][at].reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.packed.places)

    def __len__(self) -> int:
        return len(self.packed.places)


def scaled(arrays: Mapping[str, Any], by: float) -> Mapping[str, Any]:
    """The arrays times a number."""
    if isinstance(arrays, Lying):
        return Lying(arrays.packed, {dtype: v * by for dtype, v in arrays.vectors.items()})
    return {k: x * by for k, x in arrays.items()}


def added(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The sum of arrays of the same names, one part after the other."""
    total = parts[0]
    for more in parts[1:]:
        if isinstance(total, Lying) and isinstance(more, Lying):
            total = Lying(total.packed, {dtype: v + more.vectors[dtype] for dtype, v in total.vectors.items()})
        else:
            total = {k: total[k] + x for k, x in more.items()}
    return total


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
