"""Row by row on the host: in blocks that stay in a core's cache, on every core at once.

A NumPy expression passes over memory once for every operation in it, on one core. Work that treats every row by itself is
cut into blocks of rows here, small enough that all but the first pass find them in the cache, and large enough that the
interpreter, which one thread at a time may hold, is not what they wait for.

Inside `sharing_cores()` the blocks are shared out among threads, matrix products included: the BLAS library, which would
otherwise let its own threads wait in a loop and hold the cores, is told to use one. Which thread computes a block, and
when, changes no bit of it; how many threads the library uses does, and it uses as many in every thread of the process. So
who tells it waits until nobody else is inside, and others wait for him: trainings side by side give the bits of one after another.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from minipeft.engine import backend

BLOCK = 1 << 20  # bytes of one operand in a block
PAYS = 1 << 21  # bytes of one operand from which on another thread gains more than waking it costs
PAYS_FLOPS = 3e7  # the same for matrix products
EACH = 1 << 20  # bytes of one operand for each thread that shares an op: with fewer, more threads are no faster
EACH_FLOPS = 1e8  # the same for matrix products
UNPACKED = 10**6  # multiplications of a product that OpenBLAS takes as small
FEW = 24  # rows
PAYS_SHARING = 1e8  # operations of the largest product from which on to share at all
OF_LIBRARY = 4e6  # operations of the largest product for each of the library's own threads, where ours do not share

# how many share the work: 0 outside of in_turn() and sharing_cores(), 1 where nobody does
_threads: ContextVar[int] = ContextVar("threads", default=0)


def over_rows(f: Callable[[slice], None], rows: int, nbytes: int) -> None:
    """Call f(slice) for slices that together make range(rows), in any order, perhaps at the same time.

    f writes its own rows of arrays made before; `nbytes` is the size of one operand.
    """
    _share(f, rows, _blocks(nbytes), _paying(nbytes, EACH) if nbytes >= PAYS else 1)


def over_products(f: Callable[[slice], None], rows: int, flops: float, nbytes: int = 0) -> None:
    """The same for an f that is mostly matrix products, of `flops` operations in all: in one piece for each thread, or in blocks.

    `nbytes` is the size of what f goes over again beside its products. Without threads of our own f is called once, and the
    BLAS library's do the work. Few pieces: each packs the other factor of a product anew.
    """
    threads = _paying(flops, EACH_FLOPS) if flops >= PAYS_FLOPS else 1
    if threads <= 1:
        f(slice(0, rows))
    else:
        _share(f, rows, max(_blocks(nbytes), threads), threads)


def _paying(work: float, each: float) -> int:
    """How many threads are to share so much work."""
    return min(_threads.get(), max(2, int(work / each))) if each else _threads.get()


def pieces(at: slice, size: int) -> list[slice]:
    """The slice cut into slices of `size`, the last perhaps shorter."""
    return [slice(i, min(i + size, at.stop)) for i in range(at.start, at.stop, size)]


def thin(n: int, width: int) -> int:
    """Into how many equal pieces to cut n rows for products with few columns, of `width` multiplications a row.

    Up to UNPACKED multiplications OpenBLAS reads its factors where they lie; above, it copies both first, which is most of
    the work where one of them is thin. Where the pieces would be of a few rows, it is one.
    """
    count = max(1, -(-n * width // UNPACKED))
    while n % count and n >= FEW * count:
        count += 1
    return 1 if n < FEW * count else count


def _blocks(nbytes: int) -> int:
    return -(-nbytes // BLOCK)


def _share(f: Callable[[slice], None], rows: int, count: int, threads: int) -> None:
    count = max(1, min(count, rows))
    blocks = iter([slice(i * rows // count, (i + 1) * rows // count) for i in range(count)])

    def work() -> None:
        for block in blocks:  # the next block belongs to whichever thread asks for it
            f(block)

    if count == 1 or threads <= 1:
        work()
        return
    others = [_helpers().submit(contextvars.copy_context().run, work) for _ in range(threads - 1)]  # numpy.errstate
    try:
        work()
    finally:
        for other in others:
            other.result()


class _Turns:
    """Any number of threads may be inside, or one that is there alone."""

    def __init__(self) -> None:
        self.changed, self.inside, self.alone, self.waiting = threading.Condition(), 0, False, 0

    @contextlib.contextmanager
    def taken(self, alone: bool) -> Iterator[None]:
        """Within this context the caller is inside. Who wants to be alone goes before others that come later."""
        with self.changed:
            self.waiting += alone
            try:
                self.changed.wait_for(lambda: not self.alone and not (self.inside if alone else self.waiting))
            finally:
                self.waiting -= alone
            self.inside, self.alone = self.inside + 1, alone
        try:
            yield
        finally:
            with self.changed:
                self.inside, self.alone = self.inside - 1, False
                self.changed.notify_all()


_turns = _Turns()


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Within this context, which waits for whoever shares, nobody changes how many threads the BLAS library uses.

    Does nothing inside of another such context.
    """
    if _threads.get():
        yield
        return
    with _turns.taken(alone=False):
        token = _threads.set(1)
        try:
            yield
        finally:
            _threads.reset(token)


@contextlib.contextmanager
def sharing_cores(largest: float = float("inf")) -> Iterator[None]:
    """Within this context the work is shared out among threads: as many as the BLAS library had, which now has one, and as pay.

    `largest` is the operations of the largest matrix product: where that is small, the library's waiting threads are sooner
    at work than ours, as many of them as pay. It is `in_turn` then, where none are to be kept from it, and for a library that does
    not let itself be told (other than OpenBLAS on Linux). Does nothing on a GPU and inside of another such context.
    """
    if backend.name() != "numpy" or _threads.get():
        yield
        return
    share, most, blas = largest >= PAYS_SHARING, of_library(largest), _openblas()
    if blas is None or not (share or most < (os.cpu_count() or 1)):
        with in_turn():
            yield
        return
    get, put = blas
    with _turns.taken(alone=True):
        had = get()
        token = _threads.set(had if share else 1)
        try:
            put(1 if share else min(had, most))
            yield
        finally:
            put(had)
            _threads.reset(token)


def of_library(largest: float) -> int:
    """How many of the library's threads pay, at most, where the largest product has so many operations."""
    return int(max(1, min(largest / OF_LIBRARY, 1 << 20))) if OF_LIBRARY else 1 << 20


def threads_of_library() -> int:
    """How many threads the BLAS library uses; 0 where it does not say."""
    return blas[0]() if (blas := _openblas()) else 0


def set_threads_of_library(count: int) -> None:
    """Have the BLAS library use so many threads from now on, once nobody else is inside; 0 changes nothing."""
    if count and (blas := _openblas()):
        with _turns.taken(alone=True):
            blas[1](count)


@cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """How many threads NumPy's OpenBLAS uses, and how to change that; None if it has another library."""
    with contextlib.suppress(OSError):
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "openblas" in line}
        for path in sorted(mapped, key=lambda p: ("numpy" not in p, p)):
            library: Any = ctypes.CDLL(path)
            for name in (
                "scipy_openblas_{}_num_threads64_",
                "scipy_openblas_{}_num_threads",
                "openblas_{}_num_threads",
            ):
                with contextlib.suppress(AttributeError):
                    return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None


@cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "minipeft-rows")


def _forked() -> None:
    """Threads do not survive a fork, nor those that were inside."""
    _helpers.cache_clear()
    _turns.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
