"""`minipeft show`."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from minipeft.cli.options import Method
from minipeft.cli.terminal import terminal


def show(
    method: Method,
    code: Annotated[bool, typer.Option("--code", help="Print the whole file.")] = False,
) -> None:
    """One method: its equations, its arrays, where it differs from others, and its file.

    Examples:
        minipeft show METHOD
        minipeft show METHOD --code
    """
    import dataclasses
    import inspect

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
    print(folded((sys.modules[cls.__module__].__doc__ or "").strip(), console.width))
    console.print("\n[bold]settings[/bold]")
    for f in dataclasses.fields(cls):
        print(folded(f"    {f.name} = {f.default!r}", console.width))
    console.print("\n[bold]file[/bold]")
    print(f"    {file}")


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
            out += textwrap.wrap(first, width, subsequent_indent=" " * (_indent(line) + 4))
            out += textwrap.wrap(note, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
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
