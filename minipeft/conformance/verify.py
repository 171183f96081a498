"""Runs implementations on recorded cases, each in a process of its own, and judges what comes back.

An implementation is named `python:module:object`, `exec:'command'`, or by a harness under `minipeft.conformance.peers`. All of
them speak the protocol of docs/format.md over pipes, so that a crash, a hang or garbage costs one case and not the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.checkpoints.files import existing, read_tensors, write_bytes
from minipeft.conformance import cases as files
from minipeft.conformance.cases import Case
from minipeft.conformance.judge import judge
from minipeft.conformance.results import Result
from minipeft.errors import Bad, near
from minipeft.plain import cell

PEERS = tuple(sorted(p.stem.replace("_", "-") for p in (Path(__file__).parent / "peers").glob("[a-z]*.py")))
LEVELS = {1: ("forward",), 2: ("forward", "grad", "delta", "merge"), 3: ()}  # () is all checks
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
                errors="replace", env=env,
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

    def stop(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


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
        return [*serve, f"minipeft.conformance.peers.{name.replace('-', '_')}:implementation"]
    known = ["minipeft", *PEERS, "python:module:object", "exec:command"]
    raise Bad(f"implementation {name!r}: expected one of {', '.join(known)}{near(name, known)}")


@dataclass(frozen=True)
class Chosen:
    """The cases of a run, and the default readings of every method."""

    cases: tuple[Case, ...]
    defaults: Mapping[str, Mapping[str, str]]


def choose(
    folder: Path = files.SHIPPED, methods: list[str] | None = None, checks: list[str] | None = None, ids: list[str] | None = None,
    level: int = 3,
) -> Chosen:  # fmt: skip
    """The cases asked for. Raises `Bad` if there are none."""
    wanted = checks or (list(LEVELS[level]) or None)
    every = list(files.load(folder, methods, wanted))
    defaults = {c.method: dict(c.readings) for c in files.load(folder, methods, ["forward"]) if c.variant == "usual"}
    if ids:
        known = [c.id for c in every]
        for i in ids:
            if not fnmatch.filter(known, i):
                raise Bad(f"case {i!r} is not recorded{near(i, known)}")
        every = [c for c in every if any(fnmatch.fnmatchcase(c.id, i) for i in ids)]
    if not every:
        raise Bad("no recorded case is of these methods and checks")
    return Chosen(tuple(every), defaults)


def run(
    name: str, chosen: Chosen, *, jobs: int = 2, limit: float = LIMIT, python: str | None = None, dtype: str | None = None,
    strict: bool = False, progress: Callable[[Result], None] = lambda r: None,
) -> list[Result]:  # fmt: skip
    """Judge one implementation on the cases, `jobs` processes side by side. Raises `Bad` if it cannot be started.

    `strict` judges it by the usual readings alone, whichever it declares.
    """
    command = command_of(name, python)
    first = Program(command, limit)
    try:
        info = first.ask(limit=max(limit, 60.0), do="start", format=files.FORMAT)
        about = _info(name, info) | dict(strict=strict)
    except Broken as why:
        raise Bad(f"implementation {name}: it does not start: {why}") from None
    jobs = max(1, min(jobs, len(chosen.cases) // 40))  # starting a library can take longer than its cases
    shares = [list(chosen.cases[i::jobs]) for i in range(jobs)]

    def work(share: list[Case], program: Program | None) -> list[Result]:
        out = []
        with tempfile.TemporaryDirectory() as scratch:
            for case in share:
                program, result = one(case, about, program, command, limit, Path(scratch), chosen, dtype)
                progress(result)
                out.append(result)
        if program is not None:
            program.stop()
        return out

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        done = [pool.submit(work, share, first if i == 0 else None) for i, share in enumerate(shares)]
        found = [r for d in done for r in d.result()]
    order = {c.id: i for i, c in enumerate(chosen.cases)}
    return sorted(found, key=lambda r: order[r.id])


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


def one(
    case: Case, about: Mapping[str, Any], program: Program | None, command: Sequence[str], limit: float, scratch: Path,
    chosen: Chosen, dtype: str | None,
) -> tuple[Program | None, Result]:  # fmt: skip
    """One case: the program to go on with, and the result."""
    declared = about["readings"].get(case.method, {})
    kind = dtype or about["dtypes"][0]
    case = files.with_dtype(case, np.dtype(kind).type)
    result = Result(
        implementation=about["called"], version=about["version"], id=case.id, outcome="SKIP", dtype=kind,
        readings=dict(case.readings),
    )  # fmt: skip
    if case.method not in about["methods"]:
        return program, dataclasses.replace(result, outcome="SKIP", reason="this method is not there")
    default = chosen.defaults.get(case.method, {})
    followed = default if about["strict"] else declared
    other = {f: v for f, v in followed.items() if f in case.readings and v not in ("*", case.readings[f])}
    if other:
        told = ", ".join(f"{f}={v}" for f, v in other.items())
        whose = "the usual reading" if about["strict"] else "its reading"
        return program, dataclasses.replace(result, outcome="N/A", reason=f"{whose} is {told}")
    begun = time.perf_counter()
    out = scratch / "out.safetensors"
    out.unlink(missing_ok=True)
    try:
        if program is None:
            program = Program(command, limit)
            program.ask(limit=max(limit, 60.0), do="start", format=files.FORMAT)
        answer = program.ask(do="case", folder=str(case.folder), out=str(out), dtype=kind)
    except Broken as why:
        return None, dataclasses.replace(result, outcome="ERROR", reason=str(why), seconds=time.perf_counter() - begun)
    result = dataclasses.replace(result, seconds=round(time.perf_counter() - begun, 4))
    result = _told(case, answer, out, result)
    if result.outcome == "PASS" and any(default.get(f, v) != v for f, v in case.readings.items() if f in declared):
        result = dataclasses.replace(result, outcome="READING")
    return program, result


def _told(case: Case, answer: Mapping[str, Any], out: Path, result: Result) -> Result:
    reason, url = str(answer.get("reason", ""))[:400], str(answer.get("url", ""))[:400]
    status = answer.get("status")
    if status == "unsupported":
        return dataclasses.replace(result, outcome="SKIP", reason=reason, url=url)
    if status == "rejected":
        if case.tolerance == "REJECT":
            return dataclasses.replace(result, outcome="PASS", reason=reason)
        return dataclasses.replace(result, outcome="FAIL", reason=f"rejected: {reason}")
    if status != "done":
        known = "done, unsupported, rejected"
        return dataclasses.replace(
            result, outcome="ERROR", reason=reason or f"expected a status of {known}, found {status!r}"
        )
    if case.tolerance == "REJECT" and not out.exists():
        return dataclasses.replace(result, outcome="FAIL", reason="accepted a file that does not fit")
    try:
        got = read_tensors(out)
    except Bad as why:
        return dataclasses.replace(result, outcome="ERROR", reason=str(why).replace(str(out), "its output"))
    return diagnosed(case, got, judge(case, got, result))


def diagnosed(case: Case, got: Mapping[str, Any], result: Result) -> Result:
    """A failure with the mutants and readings whose output it equals."""
    if result.outcome != "FAIL" or case.tolerance == "SHAPES":
        return result
    if case.tolerance == "REJECT":
        return dataclasses.replace(result, diagnosis=("any_file_is_taken",))
    from minipeft.conformance.mutants import equals

    return dataclasses.replace(result, diagnosis=tuple(equals(case, got)))


# --- two implementations ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One tensor of two implementations: the largest difference, relative to the largest value."""

    name: str
    relative: float
    worst: tuple[int, ...]
    values: tuple[float, float]
    reason: str = ""

    @property
    def same(self) -> bool:
        """Whether they agree to what rounding explains."""
        return not self.reason and self.relative <= 1e-6


def diff(first: str, second: str, case: Case, limit: float = LIMIT) -> list[Row]:
    """What two implementations give for a case: intermediates in the order of the first, if both can trace, and results."""
    rows = []
    given = [_traced(name, case, limit) for name in (first, second)]
    for kind in ("trace", "result"):
        one, other = given[0][kind], given[1][kind]
        for name in one:
            if name in other:
                rows.append(_row(name, one[name], other[name]))
            elif kind == "result":
                rows.append(Row(name, float("inf"), (), (0.0, 0.0), f"{second} has no {name}"))
    return rows


def bisect(name: str, case: Case, limit: float = LIMIT) -> tuple[list[Row], Row | None]:
    """The intermediates that an implementation shares with minipeft, and the first at which it departs.

    Raises `Bad` if it traces none.
    """
    rows = [r for r in diff("minipeft", name, case, limit) if r.name[0].isdigit()]
    if not rows:
        raise Bad(f"implementation {name} traces no intermediate of {case.id}; minipeft verify diff compares results")
    return rows, next((r for r in rows if not r.same), None)


def _row(name: str, a: np.ndarray, b: np.ndarray) -> Row:
    if a.shape != b.shape:
        return Row(name, float("inf"), (), (0.0, 0.0), f"shapes {a.shape} and {b.shape}")
    off = abs(a.astype(np.float64) - b)
    worst = tuple(int(i) for i in np.unravel_index(off.argmax(), off.shape))
    largest = float(abs(a).max()) or 1.0
    return Row(name, float(off[worst]) / largest, worst, (float(a[worst]), float(b[worst])))


def _traced(name: str, case: Case, limit: float) -> dict[str, dict[str, np.ndarray]]:
    """The results of one implementation for a case, and its intermediates if it writes any. Raises `Bad` if it has none."""
    program = Program(command_of(name), limit)
    with tempfile.TemporaryDirectory() as scratch:
        out, trace = Path(scratch) / "out.safetensors", Path(scratch) / "trace.safetensors"
        try:
            info = _info(name, program.ask(limit=60.0, do="start", format=files.FORMAT))
            answer = program.ask(
                do="case", folder=str(case.folder), out=str(out), dtype=info["dtypes"][0], trace=str(trace)
            )
        except Broken as why:
            raise Bad(f"implementation {name}: {why}") from None
        finally:
            program.stop()
        if answer.get("status") != "done":
            raise Bad(f"implementation {name}: {case.id}: {answer.get('status')}: {answer.get('reason', '')}")
        steps = read_tensors(trace) if trace.exists() else {}
        return dict(trace=dict(sorted(steps.items())), result=read_tensors(out))


def diff_table(rows: Sequence[Row], first: str, second: str) -> Any:
    """The rows as a table; the first difference stands out."""
    from rich.table import Table

    table = Table(
        "tensor", "relative difference", "worst element", cell(first), cell(second), header_style="bold", pad_edge=False
    )
    departed = next((r for r in rows if not r.same), None)
    for r in rows:
        style = "bold red" if r is departed else "red" if not r.same else ""
        table.add_row(
            cell(r.name),
            cell(r.reason) or f"{r.relative:.2g}",
            str(r.worst),
            *(f"{v:.9g}" for v in r.values),
            style=style,
        )
    return table


# --- expectations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expectation:
    """A known outcome of cases that a pattern names, with the address of a report."""

    id: str
    outcome: str
    url: str = ""
    reason: str = ""


def read_expectations(path: Path) -> list[Expectation]:
    """An expectations file: TOML with [[expect]] tables of id, outcome, url and reason. Raises `Bad` for another one."""
    try:
        found = tomllib.loads(existing(path).read_text(encoding="utf-8"))
        return [Expectation(**e) for e in found.get("expect", [])]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, AttributeError) as why:
        raise Bad(f"{path}: expected [[expect]] tables with id, outcome, url and reason: {why}") from None


def write_expectations(path: Path, results: Iterable[Result], before: Sequence[Expectation] = ()) -> int:
    """The failures of a run as an expectations file; addresses and reasons known before are kept. Returns how many."""
    known = {e.id: e for e in before}
    out, n = [], 0
    for r in results:
        if r.outcome in ("FAIL", "ERROR"):
            e = next(
                (known[p] for p in known if fnmatch.fnmatchcase(r.id, p)), Expectation(r.id, r.outcome, "", r.reason)
            )
            lines = [
                f"{k} = {json.dumps(v, ensure_ascii=False)}"
                for k, v in dict(id=r.id, outcome=r.outcome, url=e.url, reason=e.reason).items()
            ]
            out.append("\n".join(["[[expect]]", *lines, ""]))
            n += 1
    write_bytes(path, "\n".join(out).encode())
    return n


def unexpected(results: Sequence[Result], expected: Sequence[Expectation]) -> list[str]:
    """What is not as expected, a line each: failures, passes of what is expected to fail, expectations that match nothing."""
    said, used = [], set()
    for r in results:
        match = [e for e in expected if fnmatch.fnmatchcase(r.id, e.id)]
        used |= {e.id for e in match}
        if r.outcome in ("FAIL", "ERROR"):
            if not any(e.outcome == r.outcome for e in match):
                said.append(f"{r.implementation} {r.id}: {r.outcome}: {r.reason}")
        elif match and r.outcome in ("PASS", "READING"):
            said.append(
                f"{r.implementation} {r.id}: passes, but {match[0].outcome} is expected: {match[0].url or match[0].reason}"
            )
    said += [f"expectation {e.id!r} matches no case" for e in expected if e.id not in used]
    return said
