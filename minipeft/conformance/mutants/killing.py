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
    """Other implementations that this case's output might be: mutants, and minipeft with one option changed."""
    from minipeft.conformance.record.variants import options

    for name, m in mutants.every().items():
        if m.concerns(case):
            yield name, m.make()
    method = method_of(case)
    for field, choices in options(type(method)).items():
        for choice in choices:
            if choice != getattr(method, field):

                class Other(mutants.Settings):
                    def change(self, m: Any, field: str = field, choice: Any = choice) -> Mapping[str, Any]:
                        return {field: choice}

                yield f"{field}={choice}", Other()


def equals(case: Case, got: Mapping[str, Any]) -> list[str]:
    """The names of the mutants and options whose results are those of `got`, and not what is wanted."""
    found = []
    rounded = case.tolerance in ("EXACT", "ROUND1")  # then results are equal, or not
    for name, implementation in alternatives(case):
        try:
            other = getattr(implementation, case.ask)(case)
        except Exception:
            continue
        if any(k not in other or np.shape(other[k]) != v.shape for k, v in case.want.items()):
            continue
        tolerance = {
            k: 0.0 if rounded else 64 * UNIT[np.dtype(case.dtype)] * max(case.cond.get(k, 0.0), float(abs(v).max()))
            for k, v in case.want.items()
        }
        differs = any((abs(np.asarray(other[k], np.float64) - v) > tolerance[k]).any() for k, v in case.want.items())
        same = all(
            np.asarray(got.get(k)).shape == v.shape
            and (abs(np.asarray(got[k], np.float64) - other[k]) <= tolerance[k]).all()
            for k, v in case.want.items()
        )
        if differs and same:
            found.append(name)
    return found or _roughly(case, got)


def _roughly(case: Case, got: Mapping[str, Any]) -> list[str]:
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
