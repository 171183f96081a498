"""`minipeft verify new`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minipeft.cli.options import one_of
from minipeft.cli.terminal import plain

LANGUAGES = ("rust", "python", "jax", "mlx", "c")


def new(
    language: Annotated[str, typer.Argument(help="rust, python, jax, mlx or c.", autocompletion=one_of(*LANGUAGES))],
    folder: Annotated[Path, typer.Argument(help="Where to write it; must not exist or be empty.")],
) -> None:
    """Write the skeleton of a harness in another language.

    Example:
        minipeft verify new rust harness/
    """
    from minipeft.conformance.new import skeleton

    for path in skeleton(language, folder):
        print(plain(path))
