"""`minipeft show`."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from minipeft.cli.options import Method
from minipeft.cli.terminal import terminal

WIDEST = 24  # of a column


def show(
    method: Method,
    code: Annotated[bool, typer.Option("--code", help="Print the whole file.")] = False,
) -> None:
    """One method: its equations, settings, arrays, where it differs from others, the code of its equation, and its file.

    Examples:
        minipeft show METHOD
        minipeft show METHOD --code
    """
    import inspect

    from minipeft.conformance import docstrings
    from minipeft.conformance.mutants import surviving
    from minipeft.method import method_class

    cls = method_class(method)
    file = inspect.getsourcefile(cls) or ""
    console = terminal()
    if code:
        text = Path(file).read_text(encoding="utf-8")
        if not sys.stdout.isatty():
            print(text, end="")
            return
        from rich.syntax import Syntax

        console.print(Syntax(text, "python", word_wrap=True))
        return
    page, width = docstrings.read(cls), console.width
    print(folded(f"{page.title}. {page.source}", width), folded(_prose(page.equations), width), sep="\n\n")
    blocks = {
        "arrays": "\n".join(_columns([_array(row) for row in page.rows]) + _letters(cls)),
        "settings": "\n".join(_columns(page.settings)),
        "": "\n".join(f"{head:<9}{said}" for head, said in {**page.sections, "Size": docstrings.size(cls)}.items()),
    }
    for head, block in blocks.items():
        console.print(f"\n[bold]{head}[/bold]" if head else "")
        print(folded(block, width))
    for head, lines in _equations(cls):
        console.print(f"\n[bold]{head}[/bold]")
        print("\n".join(_indented(line, width) for line in lines))
    if told := surviving.told(cls):
        console.print("\n[bold]what no recorded case tells[/bold]")
        for why, names in told.items():
            print(*(_indented(line, width) for line in (f"    {why}", *(f"        {n}" for n in names))), sep="\n")
    console.print("\n[bold]file[/bold]")
    print(f"    {file}")


def _prose(text: str) -> str:
    """Paragraphs of sentences each on a line of its own; what is set in columns or further in stays."""
    blocks = text.split("\n\n")
    return "\n\n".join(b if re.search(r"^ |\S  ", b, re.M) else " ".join(b.split()) for b in blocks)


def _array(row: Any) -> tuple[str, ...]:
    return row.name, f"({', '.join(row.shape)})", "trained" if row.trained else "stored", row.initial


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns, two blanks apart; a cell that is long takes its room from the next."""
    wide = [min(max(map(len, column)), WIDEST) for column in zip(*rows)]
    return ["    " + "  ".join(cell.ljust(w) for cell, w in zip(row, wide)).rstrip() for row in rows]


def _letters(cls: Any) -> list[str]:
    """What the letters of shapes stand for, where an expression says it."""
    from minipeft.arrays import Size, declared

    return [f"    {n} = {it.expression}" for n, it in declared(cls).letters.items() if isinstance(it, Size)]


def _equations(cls: Any) -> Iterator[tuple[str, list[str]]]:
    """("change of METHOD", its text) of what the method does with its arrays."""
    import inspect

    for name in ("change", "weight", "apply", "forward"):
        if f := getattr(cls, name, None):
            whose = next(c for c in cls.__mro__ if name in c.__dict__)
            yield f"{name} of {whose.name}", inspect.getsource(f).rstrip().splitlines()


def _indented(line: str, width: int) -> str:
    """A line of code, the rest of a long one further in."""
    inner = " " * (_indent(line) + 8)
    return (
        line
        if len(line) <= width
        else textwrap.fill(
            line.strip(), width, initial_indent=line[: _indent(line)], subsequent_indent=inner, break_on_hyphens=False
        )
    )


def folded(text: str, width: int) -> str:
    """Text whose lines are long, for a narrow terminal: what is a table or a definition keeps its columns.

    >>> print(folded("Size  r (in + out) numbers\\n      per matrix", 20))
    Size  r (in + out)
          numbers per
          matrix
    """
    out: list[str] = []
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        hang = _hang(line)
        follow = 0  # lines below that belong to it: those of a definition
        while hang > _indent(line) and follow < len(lines) and _indent(lines[follow]) == hang:
            follow += 1
        if all(len(x) <= width for x in (line, *lines[:follow])):
            out.append(line)
            continue
        line = " ".join([line, *(x.strip() for x in lines[:follow])])
        del lines[:follow]
        if hang > width // 2:  # a note far to the right: below, on a line of its own
            first, note = line[:hang].rstrip(), line[hang:]
            out += textwrap.wrap(first, width, subsequent_indent=" " * (_indent(line) + 4), break_on_hyphens=False)
            out += textwrap.wrap(note, width, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False)
        else:
            rest = textwrap.wrap(line[hang:], width - hang, break_long_words=False, break_on_hyphens=False)
            out += [line[:hang] + rest[0], *(" " * hang + r for r in rest[1:])]
    return "\n".join(out)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _hang(line: str) -> int:
    """The column at which the last of a line's columns begins; its indentation if it has one alone."""
    gaps = [m.end() for m in re.finditer(r"(?<=\S)\s{2,}(?=\S)", line)]
    return gaps[-1] if gaps else _indent(line)
