"""Makes the recorded cases: `minipeft record METHOD`, or `python -m minipeft.conformance.record` for all. Again gives the same bytes.

Of every method in the registry, every option its settings declare is tried at every check that applies. Nothing is written
that two witnesses do not agree on, and nothing degenerate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from minipeft.checkpoints.files import write_bytes
from minipeft.checkpoints.native import decode
from minipeft.conformance.acting import IN
from minipeft.conformance.cases import Case, listed
from minipeft.conformance.missing import unfilled
from minipeft.conformance.mutants import said
from minipeft.conformance.places import OUT, WORDS, B, T
from minipeft.conformance.record import kept, released
from minipeft.conformance.record.alike import indistinct
from minipeft.conformance.record.of_method import of_method
from minipeft.conformance.record.one import single
from minipeft.conformance.record.tiny import tiny as few_of
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods, method_class


def lint(case: Case) -> list[str]:
    """What makes a case too kind: sizes that are equal, zeros and ones, results that do not depend on the arrays."""
    found = []
    if len({B, T, IN, OUT, WORDS}) < 5:
        found.append("sizes are equal")
    for k, v in case.inputs.items():
        if v.dtype.kind != "f" or case.roles[k] in ("stored",):
            continue
        if not v.any():
            found.append(f"{k} is zero")
        if v.size > 1 and (v == v.flat[0]).all():
            found.append(f"{k} is constant")
        if not (single(v) == v).all():
            found.append(f"{k} is not exact in float32")
    if case.tolerance == "COND" and case.ask in ("forward", "vjp", "delta"):
        found += [f"{k} is zero everywhere" for k, v in case.want.items() if not v.any()]
    scale = getattr(decode({"method": case.method, **case.config}), "scale", 3.0)  # files hold what no scale acts on
    if isinstance(scale, float) and scale in (0.0, 1.0) and case.ask != "save":
        found.append(f"the scale is {scale}")
    if len(case.witnesses) < 2:
        found.append("it has fewer than two witnesses")
    return [f"{case.id}: {s}" for s in found]


def lint_all(cases: Sequence[Case]) -> list[str]:
    """What makes the cases of a method together too kind: a wrong equation passes all of them."""
    name = cases[0].method
    known = {what for words in said(name, "ALIKE").values() for what in words}
    found = set(indistinct(cases))
    return [f"{name}: {what}: all cases leave it open" for what in sorted(found - known)] + [
        f"{name}: {what}: said to be alike, and is not" for what in sorted(known - found)
    ]


def record(names: Sequence[str] = (), seen: Callable[[Case], None] = lambda case: None) -> list[Case]:
    """All cases of all methods, or of some; `seen` is called with each. Raises `Bad` where a witness disagrees or a case is degenerate."""
    made = []
    for name in chosen(names):
        if open_ := list(unfilled(METHODS[name])):
            raise Bad(f"{open_[0].path}: to be filled in before {name} is recorded: {open_[0].what}")
        cases = []
        for case in of_method(METHODS[name]):
            seen(case)
            cases.append(case)
        if problems := [p for case in cases for p in lint(case)] + lint_all(cases):
            raise Bad("; ".join(problems[:5]))
        made += cases
    return made


def chosen(names: Sequence[str] = ()) -> list[str]:
    """The methods of these names, each once, or all of the package. Raises `Bad` for unknown ones."""
    load_methods()
    shipped = sorted(n for n, c in METHODS.items() if c.__module__.startswith("minipeft."))
    return list(dict.fromkeys(method_class(n).name for n in names)) or shipped


def into(
    folder: Path, names: Sequence[str] = (), correct: str = "", seen: Callable[[Case], None] = lambda case: None
) -> kept.Written:
    """Record some methods, or all, into a folder. Raises `Bad` as `record` and `kept.write` do, and nothing is written then."""
    own = chosen(names)
    return kept.write(record(own, seen), folder, few_of(own), methods=own, correct=correct)


def release(folder: Path, names: Sequence[str] = ()) -> list[str]:
    """Put cases that are not on the list of those released there, and return their ids. Raises `Bad` if a released one is not as it was."""
    listed(folder)  # raises for an index that does not fit
    entries, new = released.appended(folder, chosen(names) if names else ())
    if new:
        write_bytes(folder / released.NAME, released.text(entries))
    return new
