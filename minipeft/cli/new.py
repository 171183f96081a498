"""`minipeft new`."""

from __future__ import annotations

from typing import Annotated

import typer

from minipeft.cli.options import method_names, named
from minipeft.cli.terminal import plain

made = typer.Typer(name="new", no_args_is_help=True)


@made.callback()
def new() -> None:
    """Begin something that goes into the package.

    Example:
        minipeft new method mine --like METHOD
    """


@made.command()
def method(
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits, underscores.")],
    like: Annotated[
        str, typer.Option("--like", help="The method to begin from.", autocompletion=method_names, callback=named)
    ],
) -> None:
    """Write the files of a method, derived from those of another: what must be filled in is marked.

    The new one runs at once, as the other does. `minipeft check NAME` lists what is still missing.

    Example:
        minipeft new method mine --like METHOD
    """
    from minipeft.conformance import author

    for path in author.new(name, like):
        print(plain(path))
    print(plain(f"minipeft check {name} lists what is still missing"))
