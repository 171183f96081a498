"""`minipeft list`."""

from __future__ import annotations

from minipeft.cli.options import Json, Markdown
from minipeft.cli.outputs import Outputs
from minipeft.cli.terminal import cell, table


def list_(json_: Json = None, markdown: Markdown = None) -> None:
    """All methods, family by family. `minipeft show METHOD` says more of one.

    Example:
        minipeft list
    """
    from minipeft.conformance import docstrings
    from minipeft.method import METHODS, load_methods

    outputs = Outputs(json=json_, markdown=markdown)
    load_methods()
    found = [docstrings.facts(cls) for cls in METHODS.values()]
    found.sort(key=lambda m: (m["family"], m["name"]))
    shown = table("method", "family", "merges", "what it is", expand=True)
    shown.columns[-1].ratio = 1  # the last takes what is left, and is cut there: a line a method
    for m in found:
        shown.add_row(*(cell(m[k]) for k in ("name", "family", "merges", "title")))
    outputs.show(shown)
    outputs.json(found)
    outputs.write("markdown", lambda: docstrings.markdown(found) + "\n")
