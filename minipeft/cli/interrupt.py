"""Ctrl-C, and being told to end (SIGTERM), stop a command within a second, whatever it is in."""

from __future__ import annotations

import contextlib
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


class Interrupts:
    """`status` is what the command ends with: 130 after Ctrl-C, 143 after SIGTERM, 0 while there was neither."""

    status = 0

    def end(self) -> None:
        """After what is kept was shown: end now, without waiting for threads and processes that are at work."""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        if self.status:
            end_children()
            os._exit(self.status)


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupts]:
    """A signal raises KeyboardInterrupt in the main thread, so that a command can keep what it has. What does not come back
    in time (a factorisation, a pool that waits for its workers) is not waited for."""
    asked = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def heard(number: int, frame: Any) -> None:
        again, asked.status = asked.status, 128 + number
        if again:
            asked.end()
        raise KeyboardInterrupt

    def watch() -> None:  # the byte is written when the signal arrives, also while the main thread is not in Python
        with contextlib.suppress(OSError):
            while (byte := reader.recv(1)) and byte[0] not in numbers:
                pass
            if byte:
                asked.status = asked.status or 128 + byte[0]
                for i, pause in enumerate(PATIENCE):
                    time.sleep(pause - sum(PATIENCE[:i]))
                    end_children()
                print("minipeft: interrupted", file=sys.stderr, flush=True)
                asked.end()

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
