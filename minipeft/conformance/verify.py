"""Runs implementations on recorded cases, each in a process of its own, and judges what comes back.

All of them speak the protocol of docs/format.md over pipes, so that a crash, a hang or garbage costs one case and not the run.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.conformance import cases as files
from minipeft.conformance import taking
from minipeft.conformance.cases import Case
from minipeft.conformance.groups import group_of
from minipeft.conformance.judge import judge
from minipeft.conformance.moments import shapes_of
from minipeft.conformance.mutants.diagnosing import Failure
from minipeft.conformance.program import LIMIT, Broken, NotStarted, Program, Programs, command_of
from minipeft.conformance.results import Result, address
from minipeft.conformance.schema import short
from minipeft.conformance.verdicts import standing
from minipeft.errors import Bad, near
from minipeft.limits import WORDS

LEVELS = {1: ("forward",), 2: ("forward", "grad", "delta", "merge"), 3: ()}  # () is all checks


@dataclass(frozen=True)
class Chosen:
    """The cases of a run, and the default readings of every method."""

    cases: tuple[Case, ...]
    defaults: Mapping[str, Mapping[str, str]]
    recorded: int = 0  # cases of these methods that there are


def choose(
    folder: Path = files.SHIPPED, methods: list[str] | None = None, checks: list[str] | None = None, ids: list[str] | None = None,
    level: int = 3,
) -> Chosen:  # fmt: skip
    """The cases asked for. Raises `Bad` if there are none, and for a check that belongs to no group."""
    wanted = checks or (list(LEVELS[level]) or None)
    named = {i.partition(".")[0] for i in ids or ()}
    if ids and not methods and named <= files.methods_in(folder):  # others need not be read
        methods = sorted(named)
    every = list(files.load(folder, methods, wanted))
    forward = every if wanted is None or "forward" in wanted else files.load(folder, methods, ["forward"])
    defaults = {c.method: dict(c.readings) for c in forward if c.check == "forward" and c.variant == "usual"}
    if ids:
        known = [c.id for c in every]
        for i in ids:
            if not fnmatch.filter(known, i):
                raise Bad(f"case {i!r} is not recorded{near(i, known)}")
        every = [c for c in every if any(fnmatch.fnmatchcase(c.id, i) for i in ids)]
    if not every:
        raise Bad("no recorded case is of these methods and checks")
    for check in {c.check for c in every}:
        group_of(check)
    of = {c.method for c in every}
    return Chosen(tuple(every), defaults, sum(i.partition(".")[0] in of for i in files.ids_in(folder)))


def run(
    name: str, chosen: Chosen, *, jobs: int = 2, limit: float = LIMIT, python: str | None = None, dtype: str | None = None,
    strict: bool = False, progress: Callable[[Result], None] = lambda r: None, gave: dict[str, Failure] | None = None,
) -> list[Result]:  # fmt: skip
    """Judge one implementation on the cases, `jobs` processes side by side: a result for every case, whatever the processes do.
    Raises `NotStarted` if there is nothing to judge, `Bad` for a name that is none.

    `progress` is called with each result as it comes, in any order, one at a time. `strict` judges by the usual readings alone, whichever
    are declared. What is raised in here, KeyboardInterrupt too, ends all processes and waits for none. `gave` is filled with what failed,
    for `diagnosed`, which is asked here after the last case.
    """
    gave = {} if gave is None else gave
    jobs = max(1, min(jobs, len(chosen.cases) // 40))  # starting a library can take longer than its cases
    shares = [list(chosen.cases[i::jobs]) for i in range(jobs)]
    threads, telling = ThreadPoolExecutor(jobs), threading.Lock()
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as scratch, Programs(command_of(name, python), limit) as programs:
        try:
            first, about = programs.started(name)
        except Broken as why:
            own = name.partition(":")[2].partition(":")[0].partition(".")[0]  # its module, which is in no environment
            library = "No module named" in str(why) and f"'{own}'" not in str(why)
            elsewhere = " (--python PATH names another interpreter)" if library else ""
            raise NotStarted(f"implementation {name}: it does not start: {why}{elsewhere}") from None
        about |= dict(strict=strict)

        def work(i: int) -> list[Result]:
            program, out = first if i == 0 else None, []
            for case in shares[i]:
                program, result = one(case, about, program, programs, Path(scratch) / str(i), chosen, dtype, gave)
                with telling:
                    if programs.over:
                        break
                    progress(result)
                out.append(result)
            return out

        try:
            done = [threads.submit(work, i) for i in range(jobs)]
            found = [r for d in done for r in d.result()]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
    return in_order([name], chosen, diagnosed(found, gave))


def in_order(names: Sequence[str], chosen: Chosen, results: Iterable[Result]) -> list[Result]:
    """Results by implementation and case, as they stand beside one another. Where some of a method's cases were judged and others were
    not, for the run was interrupted, the others are there, as not asked."""
    found = {(r.implementation, r.id): r for r in results}
    begun = {(name, i.partition(".")[0]) for name, i in found}
    for name in names:
        for case in chosen.cases:
            if (name, case.id) not in found and (name, case.method) in begun:
                found[name, case.id] = Result(name, "", case.id, "SKIP", reason="not asked: the run was interrupted")
    every = ((name, case.id) for name in names for case in chosen.cases)
    return standing([found[at] for at in every if at in found])


def one(
    case: Case, about: Mapping[str, Any], program: Program | None, programs: Programs, scratch: Path, chosen: Chosen,
    dtype: str | None, gave: dict[str, Failure],
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
        return program, dataclasses.replace(result, outcome="SKIP", reason="this method is not there", absent=True)
    default = chosen.defaults.get(case.method, {})
    followed = default if about["strict"] else declared
    other = {f: v for f, v in followed.items() if f in case.readings and v not in ("*", case.readings[f])}
    if other:
        told = ", ".join(f"{f}={v}" for f, v in other.items())
        whose = "the usual reading" if about["strict"] else "its reading"
        return program, dataclasses.replace(result, outcome="N/A", reason=f"{whose} is {told}")
    begun = time.perf_counter()
    here = None
    try:
        here = _room(scratch)
        folder, out = here / "case" / case.method / case.check / case.variant, here / "out.safetensors"
        files.put(case, folder)
        if program is None:
            program, _ = programs.started(about["called"])
        answer = program.ask(do="case", id=case.id, folder=str(folder), out=str(out), dtype=kind)
        result = dataclasses.replace(result, seconds=round(time.perf_counter() - begun, 4))
        result = _told(case, answer, out, result, gave)
        result = dataclasses.replace(result, reason=result.reason.replace(str(folder), str(case.folder))[:WORDS])
    except Exception as why:  # whatever a program does, every case has a result
        stopped = isinstance(why, Broken | NotStarted)
        reason = str(why) if stopped else f"it could not be judged: {type(why).__name__}: {why}"
        result = dataclasses.replace(
            result, outcome="ERROR", reason=reason[:WORDS], seconds=time.perf_counter() - begun
        )
        program = None if stopped else program
    finally:
        if here is not None:
            shutil.rmtree(here, ignore_errors=True)
    if result.outcome == "PASS" and any(default.get(f, v) != v for f, v in case.readings.items() if f in declared):
        result = dataclasses.replace(result, outcome="READING")
    return program, result


def unstarted(name: str, chosen: Chosen, why: NotStarted) -> list[Result]:
    """What becomes of the cases of an implementation that cannot be started."""
    return [Result(name, "", c.id, "ERROR", reason=str(why)[:WORDS], readings=dict(c.readings)) for c in chosen.cases]


def _room(scratch: Path) -> Path:
    """A new folder in there, for one case; the program may have taken the other away, or put something in its place."""
    if scratch.is_symlink() or not scratch.is_dir():
        scratch.unlink(missing_ok=True)
        scratch.mkdir(parents=True)
    return Path(tempfile.mkdtemp(dir=scratch))


def _told(case: Case, answer: Mapping[str, Any], out: Path, result: Result, gave: dict[str, Failure]) -> Result:
    for key in ("reason", "url"):
        if not isinstance(answer.get(key, ""), str):
            reason = f"expected an answer whose {key} is a text, found {short(answer[key])}"
            return dataclasses.replace(result, outcome="ERROR", reason=reason)
    reason, url = answer.get("reason", "")[:WORDS], address(answer.get("url", ""))
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
            result, outcome="ERROR", reason=reason or f"expected a status of {known}, found {short(status)}"
        )
    if case.tolerance == "REJECT" and not taking.there(out):
        gave[case.id] = Failure(case, {}, result := judge(case, {}, result))
        return result
    try:
        got = taking.result(out, case.want)
    except Bad as why:
        return dataclasses.replace(result, outcome="ERROR", reason=str(why))
    with np.errstate(all="ignore"):
        result = judge(case, got, result)
    shapes = shapes_of(case)
    fits = all(k in got and got[k].shape == shape and np.isfinite(got[k]).all() for k, shape in shapes.items())
    if result.outcome == "FAIL" and fits and case.tolerance != "SUBSPACE":
        gave[case.id] = Failure(case, got, result)
    return result


def diagnosed(results: Iterable[Result], gave: Mapping[str, Failure]) -> list[Result]:
    """The results of one implementation, failures with the mistakes that explain what it `gave`."""
    from minipeft.conformance.mutants.diagnosing import diagnosed

    results = list(results)
    with np.errstate(all="ignore"):
        told = {r.id: r for r in diagnosed([gave[r.id] for r in results if r.id in gave])}
    return [dataclasses.replace(r, diagnosis=told[r.id].diagnosis) if r.id in told else r for r in results]
