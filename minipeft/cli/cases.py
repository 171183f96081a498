"""`minipeft cases`: the recorded cases, for programs in other languages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft.cli.options import method_names, named, one_of
from minipeft.cli.terminal import plain, progress

recorded = typer.Typer(name="cases", no_args_is_help=True)


@recorded.callback()
def cases() -> None:
    """The recorded cases, for whoever judges without Python.

    Example:
        minipeft cases export cases.tar.gz METHOD
    """


@recorded.command()
def export(
    out: Annotated[Path, typer.Argument(help="Where to: .tar.gz, .tgz or .zip; any other name is a folder.")],
    methods: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Only these methods (default: all).", autocompletion=method_names, callback=named),
    ] = None,
    check: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this check.", autocompletion=one_of("forward", "grad", "delta", "merge")),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
) -> None:
    """Write the recorded cases into one file, or a folder: with their index, the page of the format, and SHA256SUMS.

    The same cases give the same bytes.

    Example:
        minipeft cases export METHOD.zip METHOD --check forward
    """
    from minipeft.conformance import export as job
    from minipeft.conformance.cases import listed

    job.refuse(out, force)
    total = len(listed(methods=methods, checks=check))
    with progress("exporting", total) as tick:
        files = job.contents(methods=methods, checks=check, seen=lambda case: tick(case.id))
        tick.doing("writing")
        job.write(files, out, force)
    print(plain(f"{out}: {total} cases, {len(files)} files, {sum(map(len, files.values())) / 1e3:,.0f} kB"))
