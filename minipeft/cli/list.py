"""`minipeft list`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from minipeft.cli.common import terminal


def list_(
    json_: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    markdown: Annotated[bool, typer.Option(help="The table of README.md.")] = False,
) -> None:
    """All methods, family by family.

    Example: [bold]minipeft list[/bold]
    """
    from minipeft.conformance import docstrings
    from minipeft.method import METHODS, load_methods

    load_methods()
    found = [docstrings.facts(cls) for cls in METHODS.values()]
    found.sort(key=lambda m: (m["family"], m["name"]))
    if json_:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if markdown:
        print(docstrings.markdown(found))
        return
    from rich.table import Table

    table = Table("method", "family", "what it is", "merges", "paper", header_style="bold", pad_edge=False)
    for m in found:
        table.add_row(m["name"], m["family"], m["title"], m["merges"], m["url"])
    terminal().print(table)
