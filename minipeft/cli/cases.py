"""`minipeft cases`: the recorded cases, for programs in other languages."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft import __version__
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
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(
            help="Where to: .tar.gz, .tgz or .zip; any other name is a folder. Default: minipeft-cases-VERSION.tar.gz."
        ),
    ] = None,
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
    """Write the recorded cases into one file, or a folder: with their index, the page of the format, a judge that needs no Python, harnesses
    to start from, and SHA256SUMS.

    The same cases give the same bytes; of an archive the digest is printed.

    Example:
        minipeft cases export METHOD.zip METHOD --check forward
    """
    from minipeft.conformance import export as job
    from minipeft.conformance.cases import listed

    out = out or Path(f"minipeft-cases-{__version__}.tar.gz")
    job.refuse(out, force)
    total = len(listed(methods=methods, checks=check))
    with progress("exporting", total) as tick:
        files = job.contents(methods=methods, checks=check, seen=lambda case: tick(case.id))
        tick.doing("writing")
        job.write(files, out, force)
    print(plain(f"{out}: {total} cases, {len(files)} files, {sum(map(len, files.values())) / 1e3:,.0f} kB"))
    if out.is_file():
        print(plain(f"sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}"))
