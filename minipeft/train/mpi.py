"""Ranks that mpiexec started, on one machine or several: every one runs the whole program, and the training is shared out."""

from __future__ import annotations

import atexit
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minipeft.engine.backend import name as backend_name
from minipeft.engine.backend import to_device, to_host, xp
from minipeft.engine.fast import blocks
from minipeft.errors import Bad
from minipeft.processes import cores, launched
from minipeft.train.exchange import Exchange, Packed, failure, refuse_failures, same, shares
from minipeft.train.optimisers import Arrays
from minipeft.train.state import State


class World(Exchange):
    """All processes that mpiexec started, by mpi4py. Arrays of a device pass through the host.

    Made before any array: the ranks of one machine share its cores out, or have a GPU each, as far as there are. Inside
    of it each rank is in the same place of the same program; what ends one of them ends all, with one line of rank 0's.
    """

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as why:  # it, or the library that it loads
            raise Bad(f"ranks of mpiexec need mpi4py: pip install mpi4py mpich ({why})") from None
        self.comm, self.bytes, self.over = MPI.COMM_WORLD, MPI.BYTE, False
        self.rank, self.size = self.comm.rank, self.comm.size
        if launched()[1] != self.size:
            raise Bad(
                f"mpiexec started {launched()[1]} processes, of which mpi4py finds {self.size}: they are of two MPI "
                "libraries; take the mpiexec that lies beside this python"
            )
        here = self.comm.Split_type(MPI.COMM_TYPE_SHARED)  # those of this machine
        if backend_name() == "cupy":
            xp.cuda.Device(here.rank % xp.cuda.runtime.getDeviceCount()).use()
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

    def gathered(self, mine: Sequence[Arrays], count: int, word: Any, mark: Any) -> tuple[list[Arrays], list[Any]]:
        n = self.packed.nbytes
        given, found = bytearray(n * len(mine)), bytearray(n * count)
        for i, arrays in enumerate(mine):
            self.packed.put(arrays, given, i)
        words = self.met(word, mark)  # nothing can fail from here on: all meet again
        self.comm.Allgatherv([given, self.bytes], [found, [n * len(s) for s in shares(self.size, count)], self.bytes])
        self.sent += len(given)
        return [self.packed.taken(found, i) for i in range(count)], words

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
