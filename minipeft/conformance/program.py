"""An implementation under test: a process that reads questions and answers them, a line each (docs/format.md, section 8).

An implementation is named `python:module:object`, `exec:'command'`, or by a library that `minipeft.interop` has a harness of.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minipeft.conformance.schema import FORMAT, TEXT, TEXTS, fault, short
from minipeft.errors import Bad, near
from minipeft.limits import LINE_BYTES, LINES, NAME, SAID, STARTS
from minipeft.processes import end_group, own_group

ROOT = Path(__file__).parents[2]  # where this package lies
INTEROP = ROOT / "minipeft" / "interop"
PEERS = tuple(sorted(p.parent.name.replace("_", "-") for p in INTEROP.glob("*/harness.py")))
LIMIT = 20.0  # seconds a case may take, by default
START = 60.0  # seconds that an implementation may take to say what it is, at least: it may load a library
ENDING = 0.5  # seconds that a process may take to end after its standard output has
CAUSE = re.compile(
    r"(thread '.*' (\(\d+\) )?panicked at |panic: |(.*: )?[Ff]atal error: |[A-Z][\w.]*(Error|Exception): )"
)
SERVE = (  # another interpreter may have no minipeft: this one then, and what else is missing there from beside it
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); "
    "runpy.run_module('minipeft.conformance.serve', run_name='__main__', alter_sys=True)"
)
READINGS = {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": TEXT}}


class Broken(Exception):
    """The program under test did not answer: what happened."""


class NotStarted(Bad):
    """An implementation that cannot be judged at all: it cannot be started, or does not say what it is."""


class Program:
    """A running implementation: a process that reads and answers lines. Nothing it does stops whoever asks for longer than the
    limit, nor takes more memory than a few lines."""

    def __init__(self, command: Sequence[str], limit: float) -> None:
        self.command, self.limit, self.over = list(command), limit, False
        self.questions: queue.Queue[bytes | None] = queue.Queue()
        self.answers: queue.Queue[bytes | Broken | None] = queue.Queue(LINES)
        self.said = b""  # the end of its standard error
        env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=env,
                **own_group(),
            )  # fmt: skip
        except (OSError, ValueError) as why:  # a ValueError of a zero in a word
            reason = getattr(why, "strerror", None) or why
            raise NotStarted(f"{shlex.join(self.command)}: cannot be started: {reason}") from None
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read, self._listen)]
        for thread in self.threads:
            thread.start()

    def _write(self) -> None:
        """In a thread of its own: a program that does not read lets the pipe fill up."""
        with contextlib.suppress(OSError, ValueError), self.process.stdin as pipe:  # type: ignore[union-attr]
            for line in iter(self.questions.get, None):
                while line:
                    line = line[pipe.write(line) :]  # it may have ended, and have said something before

    def _read(self) -> None:
        rest = b""
        with contextlib.suppress(OSError, ValueError), self.process.stdout as pipe:  # type: ignore[union-attr]
            while part := pipe.read(1 << 16):
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    self.answers.put(line)
                    if self.over:
                        return
                if len(rest) > LINE_BYTES:
                    return self.answers.put(Broken(f"a line of more than {LINE_BYTES:,} bytes on standard output"))
        if rest:
            self.answers.put(rest)
        self.answers.put(None)

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError), self.process.stderr as pipe:  # type: ignore[union-attr]
            while part := pipe.read(1 << 16):
                self.said = (self.said + part)[-SAID:]

    def ask(self, limit: float | None = None, **what: Any) -> dict[str, Any]:
        """The answer to one line, which has the id of the question if that has one. Raises `Broken`, and ends the process, for
        none in time, for garbage, for the answer to something else, and for the end of the process."""
        self.questions.put(json.dumps(what).encode() + b"\n")
        try:
            line = self._answer(limit or self.limit)
            if isinstance(line, Broken):
                raise line
            if line is None:
                raise Broken(self._ended())
            answer = _object(line)
            if answer is None:
                raise Broken(f"expected one JSON object on a line, found {_text(line)[:80]!r}")
            if "id" in what and answer.get("id") != what["id"]:
                found = short(answer["id"]) if "id" in answer else "none"
                raise Broken(f"expected the answer to have the id of its question, {what['id']!r}; found {found}")
            return answer
        except queue.Empty:
            self.stop()
            raise Broken(f"no answer within {limit or self.limit:g} s") from None
        except Broken:
            self.stop()
            raise

    def _answer(self, limit: float) -> bytes | Broken | None:
        """The next line; None after the last, also where others that it started hold its standard output open."""
        end, ended = time.monotonic() + limit, False
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                return self.answers.get(timeout=min(left, ENDING))
            if ended:
                return None
            ended = self.process.poll() is not None
        raise queue.Empty

    def _ended(self) -> str:
        """How a process ended whose standard output has."""
        try:
            status = self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return "it closed its standard output and did not end"
        self.threads[-1].join(ENDING)
        how = f"with status {status}" if status >= 0 else f"by {_signal(-status)}"
        cause = _cause(_text(self.said))
        return f"the process ended {how}" + (f": {cause[:200]}" if cause else "")

    def start(self, name: str) -> dict[str, Any]:
        """What the implementation says of itself. Raises `Broken`, and `NotStarted` where it says something else than the format
        asks for."""
        info = self.ask(limit=max(self.limit, START), do="start", format=FORMAT)
        if said := _odd(info):
            self.stop()
            raise NotStarted(f"implementation {name}: its answer to start {said}")
        return info | dict(called=name, readings=info.get("readings") or {})

    def stop(self) -> None:
        """End the process, and those it has started."""
        self.over = True
        end_group(self.process)
        self.questions.put(None)
        with contextlib.suppress(queue.Empty):  # whoever waits to put a line there goes on, and ends
            while True:
                self.answers.get_nowait()


class Programs:
    """The processes of one run. All are ended where the block is left, by Ctrl-C too; none starts after that."""

    def __init__(self, command: Sequence[str], limit: float) -> None:
        self.command, self.limit, self.over = command, limit, False
        self.lock = threading.Lock()
        self.live: list[Program] = []
        self.failed: list[str] = []  # why the last starts failed, one after another

    def started(self, name: str) -> tuple[Program, dict[str, Any]]:
        """One more, and what it says of itself. Raises `Broken` where the run is over, or it has failed to start too often;
        `NotStarted` as `Program` does."""
        try:
            with self.lock:
                if self.over:
                    raise Broken("the run is over")
                if len(self.failed) >= STARTS:
                    raise Broken(
                        f"not asked: it failed to start {STARTS} times, the last time: {self.failed[STARTS - 1]}"
                    )
                program = Program(self.command, self.limit)
                self.live = [p for p in self.live if p.process.poll() is None] + [program]
            about = program.start(name)
        except (Broken, NotStarted) as why:
            self.failed.append(str(why))
            raise
        self.failed.clear()
        return program, about

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
    serve = [python, "-c", SERVE, str(ROOT)] if python else [sys.executable, "-m", "minipeft.conformance.serve"]
    if kind == "exec" and rest.strip():
        try:
            return shlex.split(rest)
        except ValueError as why:
            raise Bad(f"implementation {name!r}: expected a command as a shell reads it: {why}") from None
    if kind == "python" and rest:
        return [*serve, rest]
    if name == "minipeft":
        return [*serve, "minipeft.conformance.own:implementation"]
    if name in PEERS:
        return [*serve, f"minipeft.interop.{name.replace('-', '_')}.harness:implementation"]
    known = ["minipeft", *PEERS, "python:module:object", "exec:command"]
    raise Bad(f"implementation {name!r}: expected one of {', '.join(known)}{near(name, known)}")


def interpreters(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """{implementation: its interpreter} of what --python says: PATH, for all but minipeft, or NAME=PATH for one.

    Raises `Bad` where NAME is not judged, and where PATH is no file.
    """
    out: dict[str, str] = {}
    for word in words:
        name, _, path = word.rpartition("=")
        of, path = ([name], path) if name in names else ([n for n in names if n != "minipeft"], word)
        if not shutil.which(path):
            told = f"a file, or NAME=PATH with NAME of {', '.join(names)}"
            raise Bad(f"--python {word}: expected {told}, found none{near(name, names) if name else ''}")
        out |= dict.fromkeys(of, path)
    return out


def _signal(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _cause(said: str) -> str:
    """Why a process ended, of what it said last: the line with which a panic or an uncaught error begins, for advice, frames and versions
    may follow it; else the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    at = next((i for i in reversed(range(len(lines))) if CAUSE.match(lines[i])), len(lines) - 1)
    return " ".join(lines[at : at + (2 if at >= 0 and lines[at].endswith(":") else 1)]) if lines else ""


def _text(said: bytes) -> str:
    return said.decode("utf-8", "replace").strip()


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line, if there is one; JSON has no NaN."""

    def never(word: str) -> None:
        raise ValueError(word)

    try:
        found = json.loads(line, parse_constant=never)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _odd(info: dict[str, Any]) -> str:
    """What is wrong with what an implementation says of itself, '' if nothing is."""
    for key, kind in dict(name=str, version=str, dtypes=list, methods=list).items():
        if not isinstance(info.get(key), kind):
            return f"has no {key} ({kind.__name__}); found {short(info.get(key))}"
    for key in ("name", "version"):
        if len(info[key]) > NAME:
            return f"has a {key} of {len(info[key]):,} letters; expected at most {NAME}"
    if bad := [d for d in info["dtypes"] if d not in ("float64", "float32")] or (not info["dtypes"] and ["none"]):
        return f"has dtypes other than float64 and float32: {short(bad[0])}"
    if said := fault(info["methods"], TEXTS, "methods") or fault(info.get("readings") or {}, READINGS, "readings"):
        return f"is not as docs/format.md says: {said}"
    return ""
