"""`minipeft verify field`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minipeft import __version__
from minipeft.cli.options import Jobs, Limit
from minipeft.cli.terminal import Kept, plain, progress
from minipeft.cli.verify import by_method, ready
from minipeft.processes import cores


def field(
    folder: Annotated[Path, typer.Argument(help="Where the harnesses' environments are, or are made with pip.")],
    into: Annotated[
        Path, typer.Option(help="The folder that field.html, field.md and field.png are written to.")
    ] = Path("docs"),
    jobs: Jobs = None,
    limit: Limit = 20.0,
) -> None:
    """Judge every library there is a harness for, and write the matrix of the field. Status 1 if one is not as it is known to be.

    Example:
        minipeft verify field environments/
    """
    import matplotlib.figure  # noqa: F401  (not after some minutes)

    from minipeft.checkpoints.files import write_bytes
    from minipeft.conformance import field as job
    from minipeft.conformance import page, picture, report
    from minipeft.conformance.results import Result
    from minipeft.conformance.verify import choose
    from minipeft.processes import orphans_ended

    chosen = choose()
    console, found = ready(), Kept[Result]()
    with found, orphans_ended(), progress("judging") as tick:
        pythons = job.prepare(folder, tick.doing)
        tick.total = len(chosen.cases) * (1 + len(pythons))
        keep = {p: by_method(p, chosen.cases, found, tick) for p in ("minipeft", *pythons)}
        results, unexpected = job.judge_all(pythons, chosen, jobs or cores(), limit, lambda p, r: keep[p](r))
    if found.interrupted:
        console.print(report.matrix(found, console.width))
        print(f"interrupted: {into / 'field.html'}, field.md and field.png, of the whole field, are as they were")
        found.finish()
    console.print(report.matrix(results, console.width))
    by_id = {c.id: c for c in chosen.cases}
    write_bytes(into / "field.html", page.html(results, by_id, dict(version=__version__, cases=len(by_id))).encode())
    write_bytes(into / "field.md", report.field(results).encode())
    write_bytes(into / "field.png", picture.png(results))
    for line in unexpected[:40]:
        print(plain(line))
    if unexpected:
        raise typer.Exit(1)
