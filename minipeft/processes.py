"""Processes that this one starts: they do not hear Ctrl-C, and end when this one ends them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside do not hear a terminal's Ctrl-C: their parent does, keeps what it has, and ends them.

    A blocked signal is inherited, through an exec as well. What arrives meanwhile reaches this process at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_children() -> None:
    """Kill every process that this one started, and theirs; all but multiprocessing's own, which tidies up after them."""
    for child in multiprocessing.active_children():
        child.kill()
    tracker = getattr(getattr(resource_tracker, "_resource_tracker", None), "_pid", None)
    for pid in _descendants(os.getpid()):
        if pid != tracker:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Children first, then theirs; none where the system does not tell."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found + [below for child in found for below in _descendants(child)]


def own_group() -> dict[str, Any]:
    """For subprocess.Popen: a process that leads a group of its own, which a terminal's Ctrl-C does not reach."""
    return {"process_group": 0} if hasattr(os, "killpg") else {}


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that was started so, and those that it started; one that has ended may have left some."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()
