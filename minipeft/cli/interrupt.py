"""Ctrl-C, and being told to end (SIGTERM), stop a command within a second, whatever it is in."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from minipeft.processes import end_children

PATIENCE = 0.4, 0.9  # seconds until the processes it started are killed, and until it ends itself


class Interrupted(KeyboardInterrupt):
    """Raised by a signal. A KeyboardInterrupt itself, raised within `exec` (as of every dataclass), would make Python end by
    SIGINT in the end, whatever was caught and whatever status was asked for (`run_eval_code_obj` in CPython's pythonrun.c)."""


class Interrupts:
    """`status` is what the command ends with: 130 after Ctrl-C, 143 after SIGTERM, 0 while there was neither."""

    status = 0
    told = False

    def tell(self) -> None:
        """Say so, once."""
        self.told = True
        print("minipeft: interrupted", file=sys.stderr, flush=True)

    def now(self) -> None:
        """End without another thought."""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        end_children()
        os._exit(self.status)


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupts]:
    """A signal raises KeyboardInterrupt in the main thread, so that a command can keep what it has and end in order. What
    does not come back in time (a factorisation, a pool that waits for its workers) is not waited for; a second signal
    ends at once."""
    asked = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    times = itertools.count()

    def heard(number: int, frame: Any) -> None:
        asked.status = 128 + number
        if next(times):
            asked.now()
        raise Interrupted

    def watch() -> None:  # the byte is written when the signal arrives, also while the main thread is not in Python
        with contextlib.suppress(OSError):
            while (byte := reader.recv(1)) and byte[0] not in numbers:
                pass
            if byte:
                for i, pause in enumerate(PATIENCE):
                    time.sleep(pause - sum(PATIENCE[:i]))
                    end_children()
                asked.status = 128 + byte[0]
                if not asked.told:
                    asked.tell()
                asked.now()

    numbers = [signal.SIGINT, signal.SIGTERM]
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {n: signal.signal(n, heard) for n in numbers}
    waking = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield asked
    finally:
        signal.set_wakeup_fd(waking)
        for n, old in before.items():
            signal.signal(n, old)
        writer.close()
