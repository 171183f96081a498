"""Which small errors in a method's own code its recorded cases do not tell, and why that is so.

`SURVIVES` in the file of a method's mutants says it: {why: what survives for that reason}, each the name of an alteration, or its
beginning up to a comma, with a star for any text. `python -m minipeft.conformance.mutants --all [METHOD…]` prints the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from minipeft.conformance import cases as files
from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import said
from minipeft.conformance.mutants.altering import Alteration, line, switchboard
from minipeft.conformance.mutants.killing import result_of
from minipeft.conformance.own import Own
from minipeft.method import METHODS, Method

ASKS = ("forward", "delta", "vjp", "merge")  # in the order in which they are tried


@dataclass(frozen=True)
class Survey:
    """What became of a method's mutants: how many were killed, which survived, and what code no case runs."""

    method: str
    killed: int
    survived: tuple[str, ...]
    idle: tuple[str, ...]

    @property
    def left(self) -> dict[str, str]:
        """{what survived, or is never run: why, '' if nothing says}."""
        return {name: _why(self.method, name) for name in (*self.survived, *self.idle)}

    @property
    def faults(self) -> list[str]:
        """What is not explained, and what is explained and does not survive."""
        wrong = [
            f"{self.method}: {name}: no case tells it, and nothing says why"
            for name, why in self.left.items()
            if not why
        ]
        for key in (key for keys in said(self.method, "SURVIVES").values() for key in keys):
            if not any(_means(key, name) for name in self.left):
                wrong.append(f"{self.method}: {key}: said to survive, found nothing of that name")
        return wrong


def told(cls: type[Method]) -> dict[str, tuple[str, ...]]:
    """What a method's file explains, and those of the methods whose functions it has."""
    out: dict[str, tuple[str, ...]] = {}
    for c in line(cls):
        for why, names in said(c.name, "SURVIVES").items():
            out[why] = (*out.get(why, ()), *(n if c is cls else f"{c.__name__}.{n}" for n in names))
    return out | dict(said(cls.name, "ALIKE"))


def _means(key: str, name: str) -> bool:
    """Whether a key is the name, or its beginning up to a comma; a star stands for any text."""
    return re.fullmatch(".*".join(map(re.escape, key.split("*"))) + "(, .*)?", name) is not None


def _why(method: str, name: str) -> str:
    """Why a mutant survives, by the method's file or that of the one whose function it has; '' if none says."""
    for cls in line(METHODS[method]):
        for why, keys in said(cls.name, "SURVIVES").items():
            if any(_means(key, name.removeprefix(f"{cls.__name__}.")) for key in keys):
                return why
    return ""


def survey(cls: type[Method], cases: Iterable[Case] | None = None) -> Survey:
    """Every alteration of a method's code, on its recorded cases of outputs, gradients and weights: each must fail one that runs it."""
    chosen = [c for c in (files.load(methods=[cls.name]) if cases is None else cases) if c.ask in ASKS]
    chosen.sort(key=lambda c: (c.variant not in ("usual", "other_sizes"), ASKS.index(c.ask)))
    own, concerned = Own(), dict[Alteration, list[Case]]()
    with switchboard(cls) as board, np.errstate(all="ignore"):
        board.watching = True
        for case in chosen:
            board.met = {}
            if (right := result_of(own, case)).outcome != "PASS":
                raise AssertionError(f"{case.id}: {right.outcome} without any alteration: {right.reason}")
            for it in board.met:
                concerned.setdefault(it, []).append(case)
        board.watching = False
        alive = []
        for board.on, some in concerned.items():
            if all(result_of(own, case).outcome == "PASS" for case in some):
                alive.append(board.named(board.on))
    return Survey(cls.name, len(concerned) - len(alive), tuple(alive), tuple(board.idle()))


def markdown(surveys: Sequence[Survey]) -> str:
    """The counts of all methods."""
    rows = [
        "## Small errors in each method's own code",
        "",
        "Every expression of what a method computes, with the other sign, times 1 ± 10⁻³, or its matrices read column by column; every sum",
        "without one of its terms, or with the other of + and −; every two arrays of one shape exchanged. A recorded case of outputs,",
        "gradients or weights must fail each. What survives computes the same, or is out of reach of any case: `minipeft show METHOD`",
        "says why, and of code that no case runs. `python -m minipeft.conformance.mutants --all METHOD` makes and tries them.",
        "",
        "| method | mutants | killed | survive | never run |",
        "|---|---|---|---|---|",
    ]
    counts = [(s.killed + len(s.survived), s.killed, len(s.survived), len(s.idle)) for s in surveys]
    named = [*((s.method, row) for s, row in zip(surveys, counts)), ("all", tuple(map(sum, zip(*counts))))]
    return "\n".join([*rows, *(f"| {name} | {' | '.join(map(str, row))} |" for name, row in named)]) + "\n"
