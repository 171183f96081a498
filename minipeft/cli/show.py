"""`minipeft show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from minipeft.cli.common import terminal


def show(
    name: Annotated[str, typer.Argument(help="A method, as `minipeft list` names it.")],
    code: Annotated[bool, typer.Option(help="Print the whole file.")] = False,
) -> None:
    """One method: its equations, its arrays, where it differs from others, and its file.

    Example: [bold]minipeft show dora[/bold]   [dim]minipeft show dora --code[/dim]
    """
    import dataclasses
    import inspect

    from minipeft.method import method_class

    cls = method_class(name)
    file = inspect.getsourcefile(cls) or ""
    console = terminal()
    if code:
        from rich.syntax import Syntax

        console.print(Syntax(Path(file).read_text(encoding="utf-8"), "python"))
        return
    console.print((sys.modules[cls.__module__].__doc__ or "").strip(), markup=False)
    console.print("\n[bold]settings[/bold]")
    for f in dataclasses.fields(cls):
        console.print(f"    {f.name} = {f.default!r}", markup=False)
    console.print("\n[bold]file[/bold]    ", end="")
    console.print(file, markup=False)
