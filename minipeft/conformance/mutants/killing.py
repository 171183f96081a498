"""Killing and diagnosing: which cases fail which mutant, and which mutant's results a failure's are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minipeft.conformance import mutants
from minipeft.conformance.cases import Case, Rejected, Unsupported
from minipeft.conformance.judge import UNIT, judge
from minipeft.conformance.own import Own, method_of
from minipeft.conformance.results import Result
from minipeft.method import Method
from minipeft.settings import choices


def result_of(implementation: Own, case: Case) -> Any:
    """The judged result of an implementation in this process."""
    result = Result(implementation=type(implementation).__name__, version="", id=case.id, outcome="SKIP")
    try:
        got = getattr(implementation, case.ask)(case)
    except Unsupported as why:
        return dataclasses.replace(result, reason=str(why))
    except Rejected as why:
        right = case.tolerance == "REJECT"
        return dataclasses.replace(result, outcome="PASS" if right else "FAIL", reason=str(why))
    except Exception as why:
        return dataclasses.replace(result, outcome="ERROR", reason=f"{type(why).__name__}: {why}")
    return judge(case, got, result)


def kill_matrix(cases: Sequence[Case]) -> dict[str, dict[str, list[str]]]:
    """{mutant: {check: ids of the cases it fails}}."""
    out: dict[str, dict[str, list[str]]] = {}
    for name, m in mutants.every().items():
        implementation = m.make()
        out[name] = {}
        for case in cases:
            if m.concerns(case) and result_of(implementation, case).outcome in ("FAIL", "ERROR"):
                out[name].setdefault(case.check, []).append(case.id)
    return out


def alternatives(case: Case) -> Iterator[tuple[str, Own]]:
    """Other implementations that this case's output might be: mutants, and minipeft with one setting read otherwise."""
    for name, m in mutants.every().items():
        if m.concerns(case):
            yield name, m.make()
    method = method_of(case)
    for field, words in others(type(method)).items():
        for choice in words:
            if choice != getattr(method, field):

                class Other(mutants.Settings):
                    def change(self, m: Any, field: str = field, choice: Any = choice) -> Mapping[str, Any]:
                        return {field: choice}

                yield f"{field}={choice}", Other()


def others(cls: type[Method]) -> dict[str, list[Any]]:
    """What each setting of a method may be taken for: another choice, and what it is where nobody says."""
    from minipeft.conformance.record.variants import options

    out: dict[str, list[Any]] = {k: list(v) for k, v in options(cls).items()}
    for name, c in choices(cls).items():
        out[name] = list(dict.fromkeys([*out.get(name, ()), *c.options]))
    for f in dataclasses.fields(cls):
        if f.name != "targets" and isinstance(f.default, int | float | str) and f.default not in out.get(f.name, ()):
            out.setdefault(f.name, []).append(f.default)
    return out


def is_of(case: Case, got: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    """Whether what was given is what another implementation gives, and that is not what is wanted."""
    if other is None or set(case.want) - set(other):
        return False
    rounded = case.tolerance in ("EXACT", "ROUND1")  # then results are equal, or not
    differs = False
    for k, v in case.want.items():
        given, theirs = np.asarray(got.get(k)), np.asarray(other[k])
        if given.shape != v.shape or theirs.shape != v.shape:
            return False
        size = max(case.cond.get(k, 0.0), float(abs(v).max(initial=0)))
        most = 0.0 if rounded else 64 * UNIT[np.dtype(case.dtype)] * size
        given, theirs = np.asarray(given, np.float64), np.asarray(theirs, np.float64)
        if not (abs(given - theirs) <= most).all():
            return False
        differs = differs or not (abs(theirs - v) <= most).all()
    return differs


def answer(implementation: Own, case: Case) -> Mapping[str, Any] | None:
    """What an implementation gives, None where it gives nothing."""
    try:
        return getattr(implementation, case.ask)(case)  # type: ignore[no-any-return]
    except Exception:
        return None


def equals(case: Case, got: Mapping[str, Any]) -> list[str]:
    """The names of the mutants and settings whose results are those of `got`, and not what is wanted."""
    found = [name for name, other in alternatives(case) if is_of(case, got, answer(other, case))]
    return found or roughly(case, got)


def roughly(case: Case, got: Mapping[str, Any]) -> list[str]:
    """Whether the results are as wanted but for the rounding of float32 in float64."""
    fits = all(np.asarray(got.get(k)).shape == v.shape for k, v in case.want.items())
    if np.dtype(case.dtype) != np.float64 or case.tolerance != "COND" or not fits:
        return []

    def within(dtype: Any) -> bool:
        unit = case.k * UNIT[np.dtype(dtype)]
        return all((abs(np.asarray(got[k]) - v) <= unit * case.cond[k]).all() for k, v in case.want.items())

    return ["float32_inside"] if within(np.float32) and not within(np.float64) else []


def survivors(matrix: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """Mutants that no case fails, or that only other checks than the intended fail."""
    said = []
    for name, killed in matrix.items():
        checks = mutants.every()[name].checks
        if not set(killed) & set(checks):
            said.append(f"{name}: meant for {', '.join(checks)}, failed {', '.join(sorted(killed)) or 'nothing'}")
    return said


def markdown(matrix: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """The kill matrix as a page."""
    rows = [
        "# Mutants",
        "",
        "One broken implementation for each way in which real ones were wrong: minipeft with one error planted. The recorded cases",
        "must fail each at the check meant for it. `python -m minipeft.conformance.mutants` writes this page.",
        "",
        "| mutant | what it does | methods | meant for | failed cases by check | seen in |",
        "|---|---|---|---|---|---|",
    ]
    for name, killed in matrix.items():
        m = mutants.every()[name]
        counts = ", ".join(f"{check} {len(ids)}" for check, ids in sorted(killed.items())) or "none"
        rows.append(
            f"| `{name}` | {m.about} | {m.where.words} | {', '.join(m.checks)} | {counts} | {m.incidents or '–'} |"
        )
    return "\n".join(rows) + "\n"
