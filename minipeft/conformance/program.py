"""An implementation under test: a process that reads questions and answers them, a line each (docs/format.md, section 8).

An implementation is named `python:module:object`, `exec:'command'`, or by a library that `minipeft.interop` has a harness of.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minipeft.conformance.cases import FORMAT
from minipeft.errors import Bad, near
from minipeft.processes import end_group, own_group

INTEROP = Path(__file__).parents[1] / "interop"
PEERS = tuple(sorted(p.parent.name.replace("_", "-") for p in INTEROP.glob("*/harness.py")))
LIMIT = 20.0  # seconds a case may take, by default


class Broken(Exception):
    """The program under test did not answer: what happened."""


class Program:
    """A running implementation: a process that reads and answers lines."""

    def __init__(self, command: Sequence[str], limit: float) -> None:
        self.command, self.limit = list(command), limit
        self.answers: queue.Queue[str | None] = queue.Queue()
        env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                errors="replace", env=env, **own_group(),
            )  # fmt: skip
        except OSError as why:
            raise Bad(f"{shlex.join(self.command)}: cannot be started: {why.strerror}") from None
        self.said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said = [*self.said[-19:], line]

    def ask(self, limit: float | None = None, **what: Any) -> dict[str, Any]:
        """The answer to one line. Raises `Broken` for none in time, for garbage, and for the end of the process."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it may have ended, and have said something before
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
        try:
            line = self.answers.get(timeout=limit or self.limit)
        except queue.Empty:
            self.stop()
            raise Broken(f"no answer within {limit or self.limit:g} s") from None
        if line is None:
            code = self.process.wait()
            last = next((s.strip() for s in reversed(self.said) if s.strip()), "")
            raise Broken(f"the process ended with status {code}" + (f": {last[:200]}" if last else ""))
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.stop()
            raise Broken(f"expected one JSON object on a line, found {line.strip()[:80]!r}")
        return answer

    def start(self, name: str) -> dict[str, Any]:
        """What the implementation says of itself. Raises `Broken`, and `Bad` where it says something else than the format asks for."""
        return _info(name, self.ask(limit=max(self.limit, 60.0), do="start", format=FORMAT))

    def stop(self) -> None:
        """End the process, and those it has started."""
        end_group(self.process)
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()


class Programs:
    """The processes of one run. All are ended where the block is left, by Ctrl-C too; none starts after that."""

    def __init__(self, command: Sequence[str], limit: float) -> None:
        self.command, self.limit, self.over = command, limit, False
        self.lock = threading.Lock()
        self.live: list[Program] = []

    def started(self) -> Program:
        """One more. Raises `Broken` where the run is over."""
        with self.lock:
            if self.over:
                raise Broken("the run is over")
            self.live = [p for p in self.live if p.process.poll() is None]
            self.live.append(Program(self.command, self.limit))
            return self.live[-1]

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *why: object) -> None:
        with self.lock:
            self.over = True
            for program in self.live:
                program.stop()


def command_of(name: str, python: str | None = None) -> list[str]:
    """How to start an implementation. Raises `Bad`, with near misses, for a name that is none."""
    kind, _, rest = name.partition(":")
    serve = [python or sys.executable, "-m", "minipeft.conformance.serve"]
    if kind == "exec" and rest:
        return shlex.split(rest)
    if kind == "python" and rest:
        return [*serve, rest]
    if name == "minipeft":
        return [*serve, "minipeft.conformance.own:implementation"]
    if name in PEERS:
        return [*serve, f"minipeft.interop.{name.replace('-', '_')}.harness:implementation"]
    known = ["minipeft", *PEERS, "python:module:object", "exec:command"]
    raise Bad(f"implementation {name!r}: expected one of {', '.join(known)}{near(name, known)}")


def _info(name: str, info: dict[str, Any]) -> dict[str, Any]:
    """What an implementation says of itself. Raises `Bad` where it says something else than the format asks for."""
    kinds = dict(name=str, version=str, dtypes=list, methods=list)
    for key, kind in kinds.items():
        if not isinstance(info.get(key), kind):
            raise Bad(
                f"implementation {name}: its answer to start has no {key} ({kind.__name__}); found {info.get(key)!r}"
            )
    if bad := [d for d in info["dtypes"] if d not in ("float64", "float32")] or (not info["dtypes"] and ["none"]):
        raise Bad(f"implementation {name}: dtypes must be of float64 and float32, found {bad[0]!r}")
    return info | dict(called=name, readings=info.get("readings") or {})
