"""Tapes as text: one in full, or several side by side. At most 80 columns."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, zip_longest
from typing import NamedTuple

from minipeft.tape.record import DROPPED, FROZEN, TAPED, Part, Stop, Tape

HARD = "\N{NO-BREAK SPACE}"  # where no line is broken
WIDTH, NARROW = 80, 9  # of a line; of a column
ROLES = {TAPED: "cyan", FROZEN: "dim", DROPPED: "magenta", "end": "bold red", "array": "yellow", "head": "bold"}
MARKS = {TAPED: "│", FROZEN: "·", DROPPED: "✂"}
LEGEND = (
    "│ on the tape, (…) and ·: frozen, nothing is kept; ~…~ and ✂: a stop_gradient, or nobody, came after it. Beside an op: the KiB that it keeps. "
    "Ops on plain arrays that are written as + or × are not seen."
)
SIDES = "KiB kept in each part; ·: nothing there is on the tape; ┴: below it is, and here the gradient ends."


class Line(NamedTuple):
    """A line and what it is about: a key of `ROLES`, or ""."""

    text: str
    role: str = ""


def text(tapes: Tape | Sequence[Tape], width: int = WIDTH) -> str:
    """A tape from the first part to the loss; several as columns of one table."""
    return "\n".join(line.text for line in lines(tapes, width))


def lines(tapes: Tape | Sequence[Tape], width: int = WIDTH) -> Iterator[Line]:
    """The same, line by line."""
    if isinstance(tapes, Tape):
        yield from _one(tapes, width)
        return
    room = max(1, (width - max(map(len, part_names(tapes)), default=0) - 1) // NARROW)
    few = -(-len(tapes) // -(-len(tapes) // room))  # in as few tables as there is room for, of like width
    for first in range(0, len(tapes), few):
        yield from _beside(list(tapes[first : first + few]), width)
        yield Line("")
    yield from (Line(x, FROZEN) for x in textwrap.wrap(SIDES, width))


def kib(n: float) -> str:
    """Bytes in KiB.

    >>> kib(2_150_000), kib(150_000), kib(4), kib(0)
    ('2,100', '146.5', '<0.1', '0')
    """
    if n < 51:
        return "<0.1" if n else "0"
    return f"{n / 1024:,.0f}" if n >= 1 << 20 else f"{n / 1024:.1f}"


def chips(part: Part) -> Iterator[tuple[str, str, int, int]]:
    """(op, state, how many in a row, bytes that they keep) of a part's ops, in order."""
    for (name, state), found in groupby(part.ops, key=lambda op: (op.name, op.state)):
        many = list(found)
        yield name, state, len(many), sum(op.kept for op in many)


def totals(tape: Tape) -> dict[str, str]:
    """What one compares of tapes, as words."""
    reached = sum(a.gradient is not None for a in tape.arrays)
    return {
        "ops on the tape": f"{len(tape.taped):,}",
        "KiB it keeps": kib(tape.kept),
        "arrays trained": f"{reached:,}" if reached == len(tape.arrays) else f"{reached:,} of {len(tape.arrays):,}",
        "numbers in them": f"{tape.trained:,}",
    }


def told(tape: Tape, part: Part) -> list[str]:
    """What the stops of a part cut, in words."""
    found = Counter(_cut(tape, stop) for stop in part.stops)
    return [said + (f" ×{many}" if many > 1 else "") for said, many in found.items()]


def _cut(tape: Tape, stop: Stop) -> str:
    ops = [tape.ops[i].name for i in stop.cut]
    of = stop.of.rpartition(":")[2] if isinstance(stop.of, str) else tape.ops[stop.of].name
    if len(ops) > 3:
        return f"stop_gradient after {of}: {len(ops)} ops are off the tape"
    return f"stop_gradient after {of}" + (f": {', '.join(ops)} off the tape" if ops else "")


def _one(tape: Tape, width: int) -> Iterator[Line]:
    yield Line(tape.label, "head")
    yield from (Line(x) for x in textwrap.wrap(tape.about, width))
    name, last = max((len(p.name) for p in tape.parts), default=4) + 2, 10
    yield Line("")
    yield Line(f"  {'part'.ljust(name)}{'ops'.ljust(width - name - last - 2)}{'KiB kept':>{last}}", "head")
    run, end = 1, tape.end
    for part in tape.parts:
        if part.run != run:
            run = part.run
            yield Line(f"  pass {run} ".ljust(width, "─"), "head")
        if part == end:
            yield Line("══ here the gradient ends ".ljust(width, "═"), "end")
        rows = textwrap.wrap(", ".join(map(_chip, chips(part))), width - name - last - 3) or [""]
        for i, row in enumerate(rows):
            row = row.replace(HARD, " ")
            kept = kib(part.kept) if part.state == TAPED and i == 0 else ""
            first = f"{MARKS[part.state]} {(part.name if i == 0 else '').ljust(name)}"
            yield Line(f"{first}{row.ljust(width - name - last - 2)}{kept:>{last}}".rstrip(), part.state)
        side = f"{MARKS[part.state]} " + " " * name
        arrays = ", ".join(f"{a.name}{HARD}{shape_of(a.shape)}" for a in part.arrays)
        yield from _folded(f"trains {arrays}" if arrays else "", side, width, "array")
        for said in told(tape, part):
            yield from _folded(f"✂ {said}", side, width, DROPPED)
    if tape.elsewhere:
        arrays = ", ".join(f"{a.key.partition('/')[2].strip(':')}{HARD}{shape_of(a.shape)}" for a in tape.elsewhere)
        yield from _folded(f"trains {arrays}, of no one part", "  ", width, "array")
    yield Line("")
    yield from _folded("; ".join(f"{k}: {v}".replace(" ", HARD) for k, v in totals(tape).items()), "", width, "head")
    yield from (Line(x, FROZEN) for x in textwrap.wrap(LEGEND, width))


def _chip(chip: tuple[str, str, int, int]) -> str:
    name, state, many, kept = chip
    name = f"({name})" if state == FROZEN else f"~{name}~" if state == DROPPED else name
    more = (f"×{many}" if many > 1 else "", kib(kept) if kept else "")
    return HARD.join([name, *filter(None, more)])


def shape_of(shape: tuple[int, ...]) -> str:
    """A shape that no line is broken in."""
    return str(shape).replace(" ", HARD)


def _folded(said: str, before: str, width: int, role: str) -> Iterator[Line]:
    for row in textwrap.wrap(said, width - len(before)):
        yield Line(before + row.replace(HARD, " "), role)


def part_names(tapes: Sequence[Tape]) -> list[str]:
    """The parts of several tapes in one order, each once, as the passes come through them."""
    route: list[str] = []
    for tape in tapes:
        at = 0
        for name in tape.route:  # what this one alone has stands behind what comes before it here
            at = route.index(name) + 1 if name in route else at
            route[at:at], at = ([], at) if name in route else ([name], at + 1)
    busy = {part.name for tape in tapes for part in tape.parts}
    return [name for name in route if name in busy]


def kept_in(tape: Tape, name: str) -> int | None:
    """The bytes that the parts of this name keep; None where nothing of them is on the tape."""
    taped = [p for p in tape.parts if p.name == name and p.state == TAPED]
    return sum(p.kept for p in taped) if taped else None


def _beside(tapes: list[Tape], width: int) -> Iterator[Line]:
    names = part_names(tapes)
    first = max(map(len, [*names, *totals(tapes[0])])) + 1
    column = max(NARROW, min(16, (width - first) // len(tapes)))

    def row(head: str, cells: Iterable[str], role: str = "head") -> Line:
        return Line((head.ljust(first) + "".join(c.rjust(column) for c in cells)).rstrip(), role)

    yield from (
        row("", cells) for cells in zip_longest(*(textwrap.wrap(t.label, column - 1) for t in tapes), fillvalue="")
    )
    ends = [t.end.name if t.end else None for t in tapes]
    for name, after in zip(names, [*names[1:], ""]):
        kept = [kept_in(t, name) for t in tapes]
        cells = ["┴" if k is None and after == end else "·" if k is None else kib(k) for k, end in zip(kept, ends)]
        yield row(name, cells, FROZEN if kept == [None] * len(kept) else TAPED)
    yield Line("─" * (first + column * len(tapes)))
    yield from (row(said, cells) for said, *cells in zip(totals(tapes[0]), *(totals(t).values() for t in tapes)))
