"""What this machine gives: its rate of matrix products, and the most memory that was held."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from minipeft.processes import descendants


def on_gpu() -> bool:
    """Whether this process measures on a GPU."""
    return os.environ.get("MINIPEFT_BACKEND") == "cupy"


def matrix_rate(n: int = 1024, seconds: float = 1.0, dtype: str = "float32") -> float:
    """GFLOP/s of an n × n matrix product here, of factors in float32 or, on a GPU, bfloat16: the best of one second."""
    if on_gpu():
        from minipeft.engine.backend import xp
        from minipeft.engine.bfloat16 import bfloat16
        from minipeft.engine.fast.cuda_blas import product

        n = 8192
        x, out = xp.ones((n, n), xp.float32), xp.empty((n, n), xp.float32)
        x = bfloat16(x).values if dtype == "bfloat16" else x

        def once() -> None:
            product(x, x, out=out)
            xp.cuda.Device().synchronize()
    else:
        import numpy as np

        a = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)

        def once() -> None:
            a @ a

    once()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        once()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes; 0 where the system has no /proc."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def peak_of_process() -> Callable[[], int]:
    """What tells how far this process has grown at most since now; with others that it has forked, which share pages, how far all of them have."""
    me = os.getpid()
    before, share = _resident("VmRSS"), _share(me)

    def peak() -> int:
        others = descendants(me)
        return sum(map(_share, [me, *others])) - share if others else _resident("VmHWM") - before

    return peak


def _share(pid: int) -> int:
    """Bytes that a process holds, a page that n of them see counted as an n-th."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def with_threads(count: int, f: Callable[[], None]) -> None:
    """f() while the BLAS library has so many threads."""
    from minipeft.engine.fast import blocks

    had = blocks.threads_of_library()
    blocks.set_threads_of_library(count)
    f()
    blocks.set_threads_of_library(had)


def peak_of_arrays(side: str) -> Callable[[], int]:
    """What tells the most bytes that arrays held on the GPU."""
    if side != "ours":
        import torch

        return lambda: torch.cuda.max_memory_allocated()
    from minipeft.engine import backend

    backend.name()
    from minipeft.engine.fast.graph import watched_memory

    return watched_memory()
