"""What this machine gives: its rate of matrix products, and the most memory that was held."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


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
    """What tells how far this process has grown at most since now."""
    before = _resident("VmRSS")
    return lambda: _resident("VmHWM") - before


def peak_of_arrays(side: str) -> Callable[[], int]:
    """What tells the most bytes that arrays held on the GPU."""
    if side != "ours":
        import torch

        return lambda: torch.cuda.max_memory_allocated()
    from minipeft.engine import backend

    backend.name()
    from minipeft.engine.fast.graph import watched_memory

    return watched_memory()
