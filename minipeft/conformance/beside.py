"""A method beside a library's: cases made now, from its settings, which the library's harness answers and the judge judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.conformance import docstrings, verify
from minipeft.conformance.cases import Case
from minipeft.conformance.expect import explained, of_harness
from minipeft.conformance.places import ARCH, OTHER_ARCH, OTHERS, place_of
from minipeft.conformance.program import PEERS, START, Broken, NotStarted, Programs, command_of
from minipeft.conformance.record.more import drawn
from minipeft.conformance.record.of_method import SIZES, passes, weights
from minipeft.conformance.record.one import generator
from minipeft.conformance.record.variants import readings, usual
from minipeft.conformance.results import Result
from minipeft.errors import Bad, near
from minipeft.method import Method

QUANTITIES = {"forward": "output", "vjp": "gradient of", "merge": "merged"}  # what is compared, by what is asked
WORSE = ("ERROR", "FAIL", "SKIP", "N/A", "READING", "PASS")


@dataclass(frozen=True)
class Row:
    """One quantity: the largest difference in units of u·cond, the bound, the outcome, and why it is not a plain one."""

    quantity: str
    ratio: float | None
    bound: float
    outcome: str
    reason: str = ""
    known: str = ""  # where a difference that is known is explained


def cases_of(cls: type[Method], settings: Mapping[str, Any]) -> Iterator[Case]:
    """A case for every tensor: outputs, gradients, merged weights, at two sizes where the settings fit both. Raises `Bad` if they fit none."""
    page, unfit, found = docstrings.read(cls), None, False
    for variant, arch in (("usual", ARCH), (SIZES, OTHER_ARCH)):
        try:
            method = dataclasses.replace(usual(cls, arch), **settings)
            place = place_of(method) if arch is ARCH else OTHERS[place_of(method).name]
            rng = generator(cls.name, variant, "beside")
            inputs, _, arrays, about = drawn(cls, variant, method, page, place, rng)
        except Bad as why:
            unfit = unfit or why
            continue
        found = True
        made = [*passes(inputs, arrays, about, rng), *weights(cls, method, place, inputs, arrays, about)]
        for case in (c for c in made if c.ask in QUANTITIES):
            for n, (name, want) in enumerate(sorted(case.want.items())):
                yield dataclasses.replace(
                    case, variant=f"{variant}-{n}", want={name: want}, cond={name: case.cond[name]}, recorded={}
                )
    if not found and unfit:
        raise unfit


@dataclass(frozen=True)
class Beside:
    """A method and a library's: a row for every quantity, and the library's readings that were taken for the method."""

    rows: list[Row]
    readings: dict[str, str]


def beside(cls: type[Method], settings: Mapping[str, Any], library: str, python: str | None = None) -> Beside:
    """The worst over the sizes of every quantity, in the library's readings where the settings do not say others. Raises `Bad` for what is
    no library, is not installed, has no such method, or not with these settings."""
    if library not in PEERS:
        raise Bad(f"--against {library}: expected one of {', '.join(PEERS)}{near(library, PEERS)}")
    try:
        with Programs(command_of(library, python), START) as programs:
            about = programs.started(library)[1]
    except (Broken, NotStarted) as why:
        absent = any(word in str(why) for word in ("No module named", "PackageNotFoundError"))
        elsewhere = f"{library}: it is not installed here; --python PATH names an interpreter that has it"
        raise Bad(elsewhere if absent and not python else f"{library}: {why}") from None
    if cls.name not in about["methods"]:
        raise Bad(f"{library}: its harness has no {cls.name}; it has {', '.join(about['methods'])}")
    followed = {f: v for f, v in about["readings"].get(cls.name, {}).items() if f not in settings and v != "*"}
    followed = {f: v for f, v in followed.items() if v != str(getattr(usual(cls), f))}
    made = list(cases_of(cls, {**followed, **settings}))
    chosen = verify.Chosen(tuple(made), {cls.name: {f: str(getattr(usual(cls), f)) for f in readings(cls)}})
    results = verify.run(library, chosen, jobs=1, python=python, dtype=np.dtype(np.float64).name, limit=60.0)
    reasons = {r.reason for r in results if r.outcome in ("SKIP", "N/A")}
    if len(reasons) == 1 and all(r.outcome in ("SKIP", "N/A") for r in results):
        raise Bad(f"{library} beside {cls.name} with these settings: {reasons.pop()}")
    whole = (
        dataclasses.replace(r, id=r.id.rpartition("-")[0]) for r in results
    )  # known by the cases that are recorded
    told = zip(results, explained(list(whole), of_harness(library)), strict=True)
    return Beside(rows(made, [dataclasses.replace(found, id=r.id) for r, found in told]), followed)


def rows(made: list[Case], results: list[Result]) -> list[Row]:
    """The results by quantity, in the order in which they were asked; one of several sizes is the worst."""
    of, out = {r.id: r for r in results}, dict[str, Row]()
    for case in made:
        (name,) = case.want
        r, quantity = of[case.id], f"{QUANTITIES[case.ask]} {name}"
        equal = f"; equals {', '.join(r.diagnosis)}" if r.diagnosis else ""
        why = "" if r.outcome == "PASS" else r.reason + equal
        row = Row(quantity, r.ratio, case.k, r.outcome, why, r.url if r.expected_outcome else "")
        before = out.get(quantity, row)
        out[quantity] = min(before, row, key=lambda x: (WORSE.index(x.outcome), -(x.ratio or 0.0)))
    return list(out.values())
