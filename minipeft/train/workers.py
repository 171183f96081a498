"""Ranks that are processes of this machine: forked, so that they share the base, and what is in memory besides."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.engine import backend
from minipeft.engine.fast import blocks
from minipeft.errors import Bad, near
from minipeft.model.batch import Batch
from minipeft.processes import cores, deaf_to_interrupts, end_with_parent
from minipeft.shown import shortly
from minipeft.train.exchange import Exchange, Failure, Lying, Packed, failure, refuse_failures, share, shares
from minipeft.train.state import State

MOST = 1024
PAYS = 1e8  # multiplications of a step from which on workers gain more than telling each other costs: docs/scale.md
GONE = (EOFError, ConnectionResetError, BrokenPipeError)


class Workers(Exchange):
    """This process, rank 0, and others that it forks when the training begins. They end with it, each has its share of the cores.

    Gradients lie in memory that all of them see, those of every part and their sums; of these each writes its share of the numbers.
    Words go through rank 0. Twice in a step all have come as far: those before may be written over.
    """

    def __init__(self, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MOST:
            hint = near(size, ["auto", "mpi"]) if isinstance(size, str) else ""
            raise Bad(f"workers: expected 1 to {MOST}, auto or mpi, found {shortly(size)}{hint}")
        if no := _why_not():
            raise Bad(f"workers: expected 1, found {size}: {no}")
        self.size = size
        self.others: list[tuple[int, Connection]] = []  # of rank 0: the processes
        self.up: Connection | None = None  # of the others: to rank 0

    def begin(self, state: State, identity: Callable[[], Mapping[str, str]]) -> State:
        self.packed, self.parts = Packed(state.theta), state.parts
        self.tables = {dtype: self._seen_by_all(self.parts + 1, n, dtype) for dtype, n in self.packed.sizes.items()}
        self.threads = blocks.threads_of_library()
        blocks.set_threads_of_library(min(self.threads, max(1, cores() // self.size)))
        for rank in range(1, self.size):
            here, there = Pipe()
            with deaf_to_interrupts(), warnings.catch_warnings():
                # of other threads, none of which is needed there, nor their locks
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
                if not pid:
                    self._is(rank, there)
                    here.close()
                    return state
            there.close()
            self.others.append((pid, here))
        return state

    @staticmethod
    def _seen_by_all(rows: int, n: int, dtype: Any) -> np.ndarray:
        """An array (rows, n) in memory that processes share, and that ends with them."""
        memory = mmap.mmap(-1, max(rows * n * dtype.itemsize, 1))
        return np.frombuffer(memory, dtype, rows * n).reshape(rows, n)

    def _is(self, rank: int, up: Connection) -> None:
        """In a new process: be this rank. Nothing interrupts it but its parent, or its parent's end."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        end_with_parent()
        for _, other in self.others:
            other.close()
        self.rank, self.up, self.others = rank, up, []

    def told(self, word: Any) -> list[Any]:
        if self.up is not None:
            self.up.send(word)
            return self.up.recv()
        words = [word, *(self._heard(*other) for other in [*self.others])]
        refuse_failures(words)
        for _, other in self.others:
            with contextlib.suppress(*GONE):  # it is missed where it should speak next
                other.send(words)
        return words

    def _heard(self, pid: int, other: Connection) -> Any:
        try:
            return other.recv()
        except GONE:
            self.others.remove((pid, other))
            other.close()
            return Failure(f"its process {_ended(pid)}; the training ends with it")

    def summed(
        self, mine: Sequence[Mapping[str, Any]], count: int, word: Any, mark: Any
    ) -> tuple[Mapping[str, Any], list[Any]]:
        for i, arrays in zip(share(self, count), mine, strict=True):
            self.packed.put(arrays, {dtype: table[i] for dtype, table in self.tables.items()})
        words = self.met(word, mark)
        for table in self.tables.values():
            own = shares(self.size, table.shape[1])[self.rank]
            at = slice(own.start, own.stop)
            table[-1, at] = table[0, at]
            for p in range(1, count):
                table[-1, at] += table[p, at]
        self.sent += self.packed.given(self.rank, self.size, len(mine))
        self.told(None)  # the sums are there
        return Lying(self.packed, {dtype: table[-1].copy() for dtype, table in self.tables.items()}), words

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: Any, why: BaseException | None, trace: Any) -> None:
        if self.up is not None:  # a process that was forked goes no further
            with contextlib.suppress(BaseException):
                if why is not None:
                    self.up.send(failure(why))
            os._exit(kind is not None)
        for pid, other in self.others:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)
            other.close()
        if hasattr(self, "threads"):
            blocks.set_threads_of_library(self.threads)


def _ended(pid: int) -> str:
    """How a process ended."""
    with contextlib.suppress(OSError):
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"
    return "is gone"


# --- how many ---------------------------------------------------------------------------------------------------------


def _why_not() -> str:
    """Why there are no workers here, "" where there may be."""
    if backend.name() != "numpy":
        return f"on {backend.name()} a training is one process; `mpiexec` makes several"
    if not sys.platform.startswith("linux"):
        return "processes are forked on Linux alone; `mpiexec` makes several anywhere"
    return ""


def chosen(adapted: Adapted, batches: Sequence[Batch], most: int | None = None) -> tuple[int, str]:
    """As many workers as pay, and why: one for each core and row, where a step has enough to do. `most`: of cores, those of this process
    if not given."""
    if no := _why_not():
        return 1, no
    rows = max((b.rows for b in batches), default=1)
    work = 3.0 * adapted.model.size * max((b.tokens for b in batches), default=1)
    most = cores() if most is None else most
    pay = min(most, rows) if work >= PAYS else 1
    n = next(n for n in range(1, pay + 1) if -(-rows // n) == -(-rows // pay))  # fewer would have more rows each
    each = max(1, most // n)
    why = f"{most} core{'s'[: most > 1]}, {rows} row{'s'[: rows > 1]} a batch"
    short = ": a step is too short to be shared out" if n == 1 and min(most, rows) > 1 else ""
    return n, f"of {each} thread{'s'[: each > 1]}{' each' * (n > 1)}: {why}{short}"
