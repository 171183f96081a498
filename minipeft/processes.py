"""Processes that this one starts: they do not hear Ctrl-C, and end when this one ends them."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Any

from minipeft.limits import FREEZES

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux's prctl


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
    for pid in descendants(os.getpid()):
        if pid != _tracker():
            _signal(pid, signal.SIGKILL)


@contextlib.contextmanager
def pool(jobs: int, begin: Callable[..., object] | None = None, *given: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that `begin(*given)` before their first piece of work, each on one thread; ended at once when this one is."""
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    before = {k: os.environ.get(k) for k in threads}
    os.environ |= threads  # a process reads these when it starts
    made = ProcessPoolExecutor(jobs, get_context("spawn"), begin, given)
    try:
        yield made
    except BaseException:
        made.shutdown(wait=False, cancel_futures=True)
        end_children()
        raise
    finally:
        for k, v in before.items():
            os.environ.pop(k) if v is None else os.environ.update({k: v})
    made.shutdown()


def _tracker() -> int | None:
    return getattr(getattr(resource_tracker, "_resource_tracker", None), "_pid", None)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def descendants(pid: int) -> list[int]:
    """Children before theirs; none where the system does not tell."""
    found = _children(pid)
    for child in found:  # which grows meanwhile
        found += _children(child)
    return found


def _children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(word) for word in task.read_text().split()]
    return found


def own_group() -> dict[str, Any]:
    """For subprocess.Popen: a process that leads a group of its own, which a terminal's Ctrl-C does not reach."""
    return {"process_group": 0} if hasattr(os, "killpg") else {}


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that was started so, and those that it started, in its group or not; one that has ended may have left some."""
    if process.poll() is None:  # else its number may be another's by now
        _kill_tree(process.pid)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a disk that is gone cannot be ended
        process.wait(5.0)


def _kill_tree(root: int) -> None:
    """Kill a process and what it has started. All are stopped first, so that none starts another meanwhile."""
    found: set[int] = set()
    for _ in range(FREEZES):
        new = {root, *descendants(root)} - found
        for pid in new:
            _signal(pid, signal.SIGSTOP)
        found |= new
        if not new:
            break
    for pid in found:
        _signal(pid, signal.SIGKILL)


@contextlib.contextmanager
def orphans_ended() -> Iterator[None]:
    """Processes that are left behind inside, whatever groups and sessions they made, are killed at the end: on Linux.

    Those whose parents have ended become children of this process, which must start no others of its own inside that stay.
    """
    before = {*_children(os.getpid())}
    adopting = _adopt(True)
    try:
        yield
    finally:
        if adopting:
            for _ in range(FREEZES):
                left = [pid for pid in _children(os.getpid()) if pid not in before and pid != _tracker()]
                if not left:
                    break
                for pid in left:
                    _kill_tree(pid)
                time.sleep(0.01)
                for pid in left:
                    with contextlib.suppress(OSError):
                        os.waitpid(pid, os.WNOHANG)
            _adopt(False)


def _adopt(whether: bool) -> bool:
    """Orphans among the descendants become children of this process from now on, or do not; whether that could be said."""
    return _prctl(PR_SET_CHILD_SUBREAPER, int(whether))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launched() -> tuple[int, int]:
    """The rank of this process among those that mpiexec started, and how many these are; (0, 1) where there was none."""
    for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")):
        with contextlib.suppress(KeyError, ValueError):
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def end_with_parent() -> None:
    """Let this process be killed when its parent ends, however that ends: on Linux."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> bool:
    """Whether Linux did as it was told."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False
