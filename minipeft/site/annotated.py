"""A method's file, prose beside code: what declarations and docstrings say of each part, and the part itself."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from minipeft.arrays import declared
from minipeft.conformance.docstrings import rows
from minipeft.method import Method
from minipeft.settings import explained


@dataclass(frozen=True)
class Part:
    """Some lines of a file, and what is to be said of them, in Markdown."""

    prose: str
    code: str


def parts(cls: type[Method]) -> list[Part]:
    """The file of a method after its docstring, in order; nothing of it is left out."""
    text = Path(inspect.getsourcefile(cls) or "").read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    groups: list[tuple[str, int]] = []  # what is said, and the last line it is said of
    for node in tree.body[1:]:
        if isinstance(node, ast.ClassDef):
            groups += _of_class(node, cls)
        else:
            groups.append((_of(node), node.end_lineno or 0))
    joined: list[tuple[str, int]] = []
    for prose, last in groups:  # neighbours of which the same is to be said are one part
        if joined and joined[-1][0] == prose:
            joined.pop()
        joined.append((prose, last))
    out, begin = [], (tree.body[0].end_lineno or 0)
    for prose, last in joined:
        out.append(Part(prose, "\n".join(lines[begin:last]).strip("\n")))
        begin = last
    return out


def _of(node: ast.stmt) -> str:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return "What the file may use."
    said = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
    return said or "Names for the declarations below."


def _of_class(node: ast.ClassDef, cls: type[Method]) -> Iterator[tuple[str, int]]:
    """The head with the class's own words, each setting, each array, each function."""
    if node.name != cls.__name__:
        yield _of(node), node.end_lineno or 0
        return
    settings, arrays = {f.name: f for f in fields(cls)}, {row.name: row for row in rows(cls)}
    kept = declared(cls).letters
    first = node.body[0]
    doc = ast.get_docstring(node)
    yield doc or "The method.", (first.end_lineno if doc else node.lineno) or 0
    for item in node.body[1 if doc else 0 :]:
        name = _name(item)
        if name in settings and isinstance(item, ast.AnnAssign):
            prose = f"`{name}`: {explained(settings[name]) or 'a setting'}."
        elif name in arrays:
            row = arrays[name]
            prose = f"{'Trained' if row.trained else 'Stored'}: **{name}** ({', '.join(row.shape)}), {row.initial}."
        elif name in kept:
            prose = f"`{name}`: a letter of shapes."
        elif isinstance(item, ast.FunctionDef):
            prose = (
                ast.get_docstring(item)
                or inspect.getdoc(getattr(Method, name, None))
                or PROTOCOL.get(name, "A part of it.")
            )
        else:
            prose = "What else is declared."
        yield prose, item.end_lineno or 0


PROTOCOL = dict(
    change="ΔW of the arrays: what is added to the weight, a matrix or a change with a structure.",
    weight="W′ of the weight and the arrays.",
    apply="h′ of the activation and the arrays.",
    forward="The output of a linear whose change depends on its input.",
    penalty="What is added to the loss.",
    before="A pass before every pass.",
    after_backward="Changes gradients, before the optimiser's step.",
    after_step="Changes arrays, after the optimiser's step.",
)


def _name(item: ast.stmt) -> str:
    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
        return item.target.id
    if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
        return item.targets[0].id
    return getattr(item, "name", "")
