"""`minipeft record`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft.cli.options import Methods
from minipeft.cli.terminal import plain, progress
from minipeft.errors import Bad


def record(
    methods: Methods = None,
    cases: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A folder of cases (default: those of the package)."),
    ] = None,
    correct: Annotated[
        str, typer.Option("--correct", metavar="REASON", help="Let released cases change, for a reason that is kept.")
    ] = "",
    release: Annotated[
        bool, typer.Option("--release", help="Record nothing: put what is not yet released on the list.")
    ] = False,
) -> None:
    """Record the cases of methods (default: all), and touch no other's.

    A case that says the same but for rounding keeps its bytes; nothing is written that two witnesses do not agree on.
    A released case, one in released.txt, does not change without --correct.

    Example:
        minipeft record METHOD --cases cases/
    """
    from minipeft.conformance import record as job
    from minipeft.conformance.cases import SHIPPED

    folder = SHIPPED if cases is None else cases
    if release and correct:
        raise Bad("--release and --correct: expected one of them")
    if release:
        for name in (new := job.release(folder, methods or ())):
            print(plain(name))
        print(plain(f"{folder / job.released.NAME}: {len(new)} more"))
        return
    with progress("recording") as tick:
        done = job.into(folder, methods or (), correct, seen=lambda case: tick(case.id))
    for word, ids in (("new", done.new), ("changed", done.changed), ("gone", done.gone)):
        for name in ids:
            print(plain(f"{word} {name}"))
    print(plain(f"{folder}: {done}"))
