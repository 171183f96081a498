"""Two implementations side by side on one case: where they first differ."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.conformance import taking
from minipeft.conformance.cases import Case, put
from minipeft.conformance.program import LIMIT, Broken, NotStarted, Programs, command_of
from minipeft.errors import Bad
from minipeft.limits import WORDS
from minipeft.plain import cell

NONE: Mapping[str, str] = {}


@dataclass(frozen=True)
class Row:
    """One tensor of two implementations: the largest difference, relative to the largest value."""

    name: str
    relative: float
    worst: tuple[int, ...]
    values: tuple[float, float]
    reason: str = ""
    kind: str = "result"  # or "trace"

    @property
    def same(self) -> bool:
        """Whether they agree to what rounding explains."""
        return not self.reason and self.relative <= 1e-6  # of NaN it is not


def diff(first: str, second: str, case: Case, limit: float = LIMIT, pythons: Mapping[str, str] = NONE) -> list[Row]:
    """What two implementations give for a case: intermediates in the order of the first, if both can trace, and results.

    `pythons` are the interpreters of those that have one of their own.
    """
    return _rows([_traced(name, case, limit, pythons.get(name)) for name in (first, second)], second)


def _rows(given: Sequence[Mapping[str, Mapping[str, np.ndarray]]], second: str) -> list[Row]:
    rows = []
    for kind in ("trace", "result"):
        one, other = given[0][kind], given[1][kind]
        for name in one:
            if name in other:
                with np.errstate(all="ignore"):
                    rows.append(dataclasses.replace(_row(name, one[name], other[name]), kind=kind))
            elif kind == "result":
                rows.append(Row(name, float("inf"), (), (0.0, 0.0), f"{second} has no {name}"))
    return rows


def bisect(name: str, case: Case, limit: float = LIMIT, pythons: Mapping[str, str] = NONE) -> tuple[list[Row], str]:
    """The intermediates that an implementation shares with minipeft, and the results; and where it first departs, in words.

    Raises `Bad` if there are none to compare: minipeft traces none of the case, or the implementation does not.
    """
    instead = "minipeft verify diff compares results"
    mine = _traced("minipeft", case, limit)
    if not mine["trace"]:
        raise Bad(f"case {case.id}: minipeft traces no intermediate of it; {instead}")
    given = [mine, _traced(name, case, limit, pythons.get(name))]
    rows = _rows(given, name)
    steps = [r.name for r in rows if r.kind == "trace"]
    own = [step for step in given[1]["trace"] if step not in steps]
    if not steps:
        found = f"traces {', '.join(own)}, none of minipeft's {', '.join(mine['trace'])}" if own else "traces none"
        raise Bad(f"implementation {name}: expected intermediates of {case.id}, {found}; {instead}")
    if case.tolerance in ("SHAPES", "SUBSPACE", "DRAWN"):  # their values are not one
        rows = [r for r in rows if r.kind == "trace"]
    departed = next((r for r in rows if not r.same), None)
    if departed is not None and departed.kind == "trace":
        said = f"departs at {departed.name}"
    elif departed is not None:
        said = f"the same in all {len(steps)} intermediates; departs at the result {departed.name}"
    else:
        said = f"the same in all {len(steps)} intermediates"
    left = [step for step in mine["trace"] if step not in steps]
    said += f"; not traced: {', '.join(left)}" if left else ""
    return rows, said + (f"; minipeft has no {', '.join(own)}" if own else "")


def _row(name: str, a: np.ndarray, b: np.ndarray) -> Row:
    if a.shape != b.shape:
        return Row(name, float("inf"), (), (0.0, 0.0), f"shapes {a.shape} and {b.shape}")
    if not a.size:
        return Row(name, 0.0, (), (0.0, 0.0))
    a, b = a.astype(np.float64), b.astype(np.float64)
    off = abs(a - b)
    worst = tuple(int(i) for i in np.unravel_index(off.argmax(), off.shape))
    largest = float(abs(a).max()) or 1.0
    return Row(name, float(off[worst]) / largest, worst, (float(a[worst]), float(b[worst])))


def _traced(name: str, case: Case, limit: float, python: str | None = None) -> dict[str, dict[str, np.ndarray]]:
    """The results of one implementation for a case, and its intermediates if it writes any. Raises `Bad` if it has none."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        Programs(command_of(name, python), limit) as programs,
    ):
        folder, out, trace = (Path(scratch) / what for what in ("case", "out.safetensors", "trace.safetensors"))
        put(case, folder)
        try:
            program, info = programs.started(name)
            answer = program.ask(
                do="case", id=case.id, folder=str(folder), out=str(out), dtype=info["dtypes"][0], trace=str(trace)
            )
            if answer.get("status") != "done":
                raise Broken(f"{case.id}: {answer.get('status')}: {answer.get('reason', '')}"[:WORDS])
            steps = taking.result(trace) if taking.there(trace) else {}
            return dict(trace=dict(sorted(steps.items())), result=taking.result(out))
        except (Broken, Bad) as why:
            told = str(why).replace(str(folder), str(case.folder))
            raise Bad(told if isinstance(why, NotStarted) else f"implementation {name}: {told}") from None


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
