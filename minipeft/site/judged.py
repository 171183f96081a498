"""What the pages of the field and of deviations say of one method."""

from __future__ import annotations

import re
from pathlib import Path

from minipeft.conformance.groups import LETTERS
from minipeft.conformance.page import anchor
from minipeft.method import METHODS

DOCS = Path(__file__).parents[2] / "docs"
NOTHING = "–"  # of a library that does not say it has the method


def verdicts(name: str, text: str | None = None) -> list[tuple[str, str]]:
    """(library with its version, marks and verdict) of all that have the method, minipeft's own first; from docs/field.md."""
    text = (DOCS / "field.md").read_text(encoding="utf-8") if text is None else text
    heads = next((_cells(line) for line in text.splitlines() if line.startswith("| method |")), [])
    rows = [_cells(line) for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [(lib, told) for lib, told in zip(heads[1:], rows[0][1:]) if told != NOTHING] if rows else []


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def sections(name: str, text: str | None = None) -> list[str]:
    """The headings of docs/deviations.md whose sections concern the method: they have its name in the heading, or name cases of it."""
    text = (DOCS / "deviations.md").read_text(encoding="utf-8") if text is None else text
    parts = [(part.split("\n")[0], part) for part in re.split(r"^## ", text, flags=re.M)[1:]]
    return [head for head, part in parts if name == _named(head) or re.search(rf"[`*]{re.escape(name)}\.", part)]


def _named(head: str) -> str:
    """The method that a heading like library-method-what names, '' if none; the longest, where one's name begins with another's."""
    of = [n for n in METHODS if re.search(rf"-{n.replace('_', '-?')}(-|$)", head)]
    return max(of, key=len, default="")


def told(name: str) -> list[str]:
    """Both, as blocks of Markdown for the method's page."""
    links = [f"[{head}](../deviations.md#{head.lower()})" for head in sections(name)]
    blocks = [
        f"Examined by hand: {', '.join(links)}." if links else "Nobody that was asked, but for what Differs says."
    ]
    if found := verdicts(name):
        rows = [f"| [{lib}](../cells.html#{anchor(name, lib.rpartition(' ')[0])}) | {said} |" for lib, said in found]
        legend = ", ".join(f"{letter} {group}" for group, letter in LETTERS.items())
        letters = "".join(LETTERS.values())
        blocks += ["\n".join([f"| recorded cases | `{letters}` |", "|---|---|", *rows])]
        blocks += [f"{legend}. [The field](../field.md) says what the marks mean, and has every finding."]
    return blocks
