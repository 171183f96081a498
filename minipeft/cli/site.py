"""`minipeft site`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft.cli.options import method_names, named
from minipeft.cli.terminal import plain, progress


def site(
    out: Annotated[Path, typer.Argument(help="The folder of the site; one that is there is replaced if it is a site.")],
    methods: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Only these methods' pages (default: all).", autocompletion=method_names, callback=named),
    ] = None,
) -> None:
    """Build the documentation as a site: a page for each method, trained for its picture; it works from a folder, without a network.

    Needs a checkout, with the extra `site`.

    Example:
        minipeft site out/site/
        minipeft site out/site/ METHOD
    """
    from minipeft.method import load_methods, method_class
    from minipeft.site.build import build, pages_of

    load_methods()
    chosen = [method_class(m).name for m in methods or ()]
    with progress("site", pages_of(chosen)) as tick:
        count = build(out, chosen, tick)
    print(plain(f"{out}: {count} pages"))
