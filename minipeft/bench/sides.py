"""One side in a process of its own: what runs there, and the hold on it from here."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from minipeft.bench.machine import matrix_rate, on_gpu, peak_of_arrays, peak_of_process, with_threads
from minipeft.bench.ours import our_step
from minipeft.bench.theirs import peft_step
from minipeft.errors import Bad
from minipeft.processes import end_group, own_group


def worker(
    side: str, size: str, method: str, task: str = "step", dtype: str = "float32", given: str = "{}", workers: str = "1"
) -> None:
    """Answer each line on standard input, a number of steps, with their times; the first answer is about memory.

    `given`: our method's settings, as JSON. `workers`: how many processes share our step, or "auto".
    """
    threads = int(os.environ["OMP_NUM_THREADS"])
    if side != "ours":
        import torch

        torch.set_num_threads(threads)
        import peft  # noqa: F401
        import transformers

        transformers.logging.set_verbosity_error()
    else:  # libraries are there before memory is watched, on both sides
        from minipeft.engine.fast import loops

        if loops.installed() and not on_gpu():
            loops.kernels()
    peak = peak_of_arrays(side) if on_gpu() else peak_of_process()
    if side == "ours":
        step = our_step(
            size,
            method,
            task,
            dtype=dtype,
            given=json.loads(given),
            workers=workers if workers == "auto" else int(workers),
        )
    else:
        step = peft_step(size, method, task, side == "compiled", dtype)
    step()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    step()
    about = {"peak": peak(), "loss": step(), "workers": getattr(step, "size", 1)}
    if side == "ours":
        with_threads(threads, lambda: about.update(gflops=matrix_rate(dtype=dtype)))
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


class Worker:
    """One side's process."""

    def __init__(
        self, side: str, size: str, method: str, threads: int, task: str = "step", dtype: str = "float32",
        given: Mapping[str, Any] = MappingProxyType({}), workers: int | str = 1, module: str = "minipeft.bench", more: Sequence[str] = (),
    ) -> None:  # fmt: skip
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        env = os.environ | dict.fromkeys(names, str(threads)) | {"HF_HUB_OFFLINE": "1"}
        words = [side, size, method, task, dtype, json.dumps(dict(given)), str(workers)]
        command = [sys.executable, "-m", module, *words, *more]
        self.what = f"{side} {size} {method}"
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (a pipe that nobody reads would fill up)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=env,
            **own_group(),
        )
        self.times: list[float] = []
        try:
            self.about = self._read()
        except BaseException:
            self.stop()
            raise

    def _read(self) -> Any:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            status = self.process.wait(timeout=30)
            self.errors.seek(0)
            error = self.errors.read().strip().splitlines() or [f"it ended with status {status}"]
            raise Bad(f"bench: {self.what} failed: {error[-1]}")
        return json.loads(line)

    def run(self, steps: int) -> None:
        """Measure some more steps. Raises `Bad` if the process has ended."""
        with contextlib.suppress(OSError):  # what it said before it ended is read below
            self.process.stdin.write(f"{steps}\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        self.times += self._read()

    def stop(self) -> None:
        """End the process."""
        end_group(self.process)
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        self.process.stdout.close()  # type: ignore[union-attr]
        self.errors.close()
