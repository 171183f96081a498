"""`minipeft verify new`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minipeft.cli.options import one_of
from minipeft.cli.terminal import plain
from minipeft.conformance.languages import LANGUAGES


def new(
    language: Annotated[
        str, typer.Argument(help=f"{', '.join(LANGUAGES[:-1])} or {LANGUAGES[-1]}.", autocompletion=one_of(*LANGUAGES))
    ],
    folder: Annotated[Path, typer.Argument(help="Where to write it; must not exist or be empty.")],
) -> None:
    """Write the beginning of a harness: a program in another language, or an object in Python, that is judged.

    It has one method and passes some of its cases as it is; its README.md says how to build it, have it judged, and go on.

    Examples:
        minipeft verify new pytorch harness/
        minipeft verify new rust harness/
    """
    from minipeft.conformance.new import skeleton

    for path in skeleton(language, folder):
        print(plain(path))
