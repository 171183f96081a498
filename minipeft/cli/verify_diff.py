"""`minipeft verify diff` and `bisect`: where two implementations part."""

from __future__ import annotations

from typing import Annotated

import typer

from minipeft.cli.options import Limit
from minipeft.cli.terminal import plain, progress, terminal
from minipeft.cli.verify import Case, Python, implementations


def diff(
    first: Annotated[str, typer.Argument(help="An implementation.", autocompletion=implementations)],
    second: Annotated[str, typer.Argument(help="Another one.", autocompletion=implementations)],
    case: Case,
    limit: Limit = 20.0,
    python: Python = None,
) -> None:
    """Where two implementations first differ on a case: intermediate by intermediate where they can trace, then the results.

    Example:
        minipeft verify diff minipeft peft --case METHOD.grad.usual
    """
    from minipeft.conformance import diff as job
    from minipeft.conformance.program import interpreters
    from minipeft.conformance.verify import choose
    from minipeft.processes import orphans_ended

    pythons = interpreters(python or (), (first, second))
    with orphans_ended(), progress("computing") as tick:
        tick.doing(case)
        rows = job.diff(first, second, choose(ids=[case]).cases[0], limit, pythons)
    terminal().print(job.diff_table(rows, first, second))
    if any(not row.same for row in rows):
        raise typer.Exit(1)


def bisect(
    implementation: Annotated[
        str, typer.Argument(help="An implementation that traces.", autocompletion=implementations)
    ],
    case: Case,
    limit: Limit = 20.0,
    python: Python = None,
) -> None:
    """The first intermediate, or else result, at which an implementation departs from minipeft. Status 1 if there is one.

    Example:
        minipeft verify bisect peft --case METHOD.forward.usual
    """
    from minipeft.conformance import diff as job
    from minipeft.conformance.program import interpreters
    from minipeft.conformance.verify import choose
    from minipeft.processes import orphans_ended

    pythons = interpreters(python or (), (implementation,))
    with orphans_ended(), progress("computing") as tick:
        tick.doing(case)
        rows, said = job.bisect(implementation, choose(ids=[case]).cases[0], limit, pythons)
    terminal().print(job.diff_table(rows, "minipeft", implementation))
    print(plain(said))
    if not all(row.same for row in rows):
        raise typer.Exit(1)
