"""Ranks that mpiexec started, on one machine or several: every one runs the whole program, and the training is shared out."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minipeft.engine.backend import name as backend_name
from minipeft.engine.backend import to_device, to_host, xp
from minipeft.engine.fast import blocks
from minipeft.errors import Bad
from minipeft.processes import cores, launched
from minipeft.train.exchange import Exchange, Lying, Packed, failure, refuse_failures, same, shares
from minipeft.train.optimisers import Arrays
from minipeft.train.state import State


class World(Exchange):
    """All processes that mpiexec started, by mpi4py.

    Made before any array: the ranks of one machine share its cores out, or have a GPU each, as far as there are. Inside
    of it each rank is in the same place of the same program; what ends one of them ends all, with one line of rank 0's.

    Each rank is handed its share of the numbers of all parts, adds them up in the order of the parts, and hands the sums to all: by NCCL
    from GPU to GPU where every rank has one of its own (MINIPEFT_NCCL=0 keeps it from that), else by MPI, through the host.
    """

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as why:  # it, or the library that it loads
            raise Bad(f"ranks of mpiexec need mpi4py: pip install mpi4py mpich ({why})") from None
        self.comm, self.over = MPI.COMM_WORLD, False
        self.rank, self.size = self.comm.rank, self.comm.size
        if launched()[1] != self.size:
            raise Bad(
                f"mpiexec started {launched()[1]} processes, of which mpi4py finds {self.size}: they are of two MPI "
                "libraries; take the mpiexec that lies beside this python"
            )
        here = self.comm.Split_type(MPI.COMM_TYPE_SHARED)  # those of this machine
        self.wire: Any = Host(self.comm, MPI.BYTE)
        if backend_name() == "cupy":
            devices = xp.cuda.runtime.getDeviceCount()
            xp.cuda.Device(here.rank % devices).use()
            self.wire = nccl(self.comm, here.size <= devices) or self.wire
        elif not {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} & os.environ.keys():
            blocks.set_threads_of_library(min(blocks.threads_of_library(), max(1, cores() // here.size)))

    def begin(self, state: State, identity: Callable[[], Mapping[str, str]]) -> State:
        words = self.told(dict(identity()))
        for key in words[0]:
            same([w[key] for w in words], f"has another {key}")
        self.packed = Packed(state.theta)
        return _moved(self.comm.bcast(_moved(state, to_host)), to_device)

    def told(self, word: Any) -> list[Any]:
        words = self.comm.allgather(word)
        try:
            refuse_failures(words)
        except Bad:
            self.over = True  # whoever failed is gone
            raise
        return words

    def summed(
        self, mine: Sequence[Mapping[str, Any]], count: int, word: Any, mark: Any
    ) -> tuple[Mapping[str, Any], list[Any]]:
        given = {dtype: xp.empty((len(mine), n), dtype) for dtype, n in self.packed.sizes.items()}
        for i, arrays in enumerate(mine):
            self.packed.put(arrays, {dtype: table[i] for dtype, table in given.items()})
        words = self.met(word, mark)  # nothing can fail from here on: all meet again
        parts = [len(s) for s in shares(self.size, count)]
        self.sent += self.packed.given(self.rank, self.size, len(mine))
        return Lying(self.packed, {dtype: self._added(table, parts) for dtype, table in given.items()}), words

    def _added(self, given: Any, parts: Sequence[int]) -> Any:
        """(n,) the sum of all parts, each rank's own being the rows of `given`, so many as `parts` says."""
        n, item, wire = given.shape[1], given.dtype.itemsize, self.wire
        of = shares(self.size, n)
        own = [len(s) * item for s in of]  # bytes of the numbers that each rank adds up
        away = wire.there(xp.concatenate([given[:, s.start : s.stop].reshape(-1) for s in of]))
        found = wire.empty((sum(parts), len(of[self.rank])), away.dtype)
        wire.handed(away, [len(given) * m for m in own], found, [p * own[self.rank] for p in parts])
        total = found[0]
        for i in range(1, len(found)):
            total += found[i]
        whole = wire.empty(n, total.dtype)
        wire.told(total, whole, own)
        return to_device(whole)

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: Any, why: BaseException | None, trace: Any) -> None:
        if isinstance(why, KeyboardInterrupt):  # the others may be anywhere; mpiexec ends them when this one is gone
            atexit.register(_leave)
        elif why is not None and not self.over:
            self.over = True
            self.comm.allgather(failure(why))
        elif not self.over:
            self.told(None)


# --- what numbers travel by -------------------------------------------------------------------------------------------


class Host:
    """By MPI, in the memory of the host."""

    empty = staticmethod(np.empty)
    there = staticmethod(to_host)

    def __init__(self, comm: Any, kind: Any) -> None:
        self.comm, self.kind = comm, kind

    def handed(self, away: Any, to_each: Sequence[int], found: Any, from_each: Sequence[int]) -> None:
        """Give each rank its piece of `away`, one behind another, of so many bytes, and fill `found` with theirs."""
        self.comm.Alltoallv([away, to_each, self.kind], [found, from_each, self.kind])

    def told(self, own: Any, whole: Any, from_each: Sequence[int]) -> None:
        """Give all of them `own`, and fill `whole` with what each gives."""
        self.comm.Allgatherv([own, self.kind], [whole, from_each, self.kind])


class Nccl:
    """By NCCL, from GPU to GPU, on the current stream: what comes after it there waits for it, and nothing else."""

    def __init__(self, library: Any, rank: int, communicator: Any) -> None:
        self.library, self.rank, self.comm = library, rank, communicator

    @staticmethod
    def empty(shape: Any, dtype: Any) -> Any:
        """An array of the device."""
        return xp.empty(shape, dtype)

    @staticmethod
    def there(x: Any) -> Any:
        """x, which is where it should be."""
        return x

    def handed(self, away: Any, to_each: Sequence[int], found: Any, from_each: Sequence[int]) -> None:
        """As `Host.handed`."""
        starts = np.cumsum([0, *to_each])
        self._meet([(int(a), n) for a, n in zip(starts, to_each)], away, found, from_each)

    def told(self, own: Any, whole: Any, from_each: Sequence[int]) -> None:
        """As `Host.told`."""
        self._meet([(0, from_each[self.rank])] * len(from_each), own, whole, from_each)

    def _meet(self, to_each: Sequence[tuple[int, int]], away: Any, found: Any, from_each: Sequence[int]) -> None:
        """Give each rank bytes of `away`, from one on so many, and fill `found`."""
        stream, kind, at = xp.cuda.get_current_stream().ptr, self.library.NCCL_UINT8, 0
        self.library.groupStart()
        for peer, ((start, n), more) in enumerate(zip(to_each, from_each, strict=True)):
            if n:
                self.comm.send(away.data.ptr + start, n, kind, peer, stream)
            if more:
                self.comm.recv(found.data.ptr + at, more, kind, peer, stream)
            at += more
        self.library.groupEnd()


def nccl(comm: Any, apart: bool) -> Nccl | None:
    """NCCL among these ranks, whose devices are used already; None where it is not there, or not all are `apart`, each on its own."""
    library: Any = None
    with contextlib.suppress(ImportError):
        library = importlib.import_module("cupy.cuda.nccl")
    usable = apart and os.environ.get("MINIPEFT_NCCL") != "0" and getattr(library, "available", False)
    if not all(comm.allgather(usable)):
        return None
    begun = comm.bcast(library.get_unique_id() if comm.rank == 0 else None)
    return Nccl(library, comm.rank, library.NcclCommunicator(comm.size, begun, comm.rank))


def _moved(state: State, by: Callable[[Any], Any]) -> State:
    """The state with its arrays on the host, or the device."""

    def all_of(arrays: Arrays) -> Arrays:
        return {k: by(x) for k, x in arrays.items()}

    own = {name: all_of(arrays) for name, arrays in state.own.items()}
    return dataclasses.replace(state, theta=all_of(state.theta), moments=all_of(state.moments), own=own)


def _leave() -> None:
    """End without waiting for other ranks, as MPI's own end would."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)
