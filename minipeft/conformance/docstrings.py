"""Reads a method's docstring: the headings, the table of arrays, the Size line; and evaluates their expressions."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from minipeft.errors import Bad
from minipeft.method import Method, Site

HEADINGS = ("Size", "Merges", "Positions", "Dropout", "Differs")


@dataclass(frozen=True)
class Row:
    """One line of the table: an array's name, the expressions of its shape, whether it is trained, its initial value."""

    name: str
    shape: tuple[str, ...]
    trained: bool
    initial: str

    @property
    def optional(self) -> bool:
        """Whether the array is there only with some setting."""
        return "only with" in self.initial


@dataclass(frozen=True)
class Page:
    """A method's docstring, taken apart."""

    title: str
    source: str
    url: str
    equations: str
    rows: tuple[Row, ...]
    sections: Mapping[str, str]

    @property
    def size(self) -> tuple[str, bool]:
        """The expression of the Size line, and whether it counts the whole adapter ("in all") or one site."""
        found = re.match(r"(.+?) numbers?\b(.*)", self.sections["Size"], re.S)
        if not found:
            raise Bad(f"{self.title}: the Size line must read 'EXPRESSION numbers per …' or '… numbers in all'")
        return found[1], found[2].strip().startswith("in all")


_ROW = re.compile(r"^    (\w+)\s+\(([^)]*(?:\([^)]*\)[^)]*)*)\)\s+(trained|stored)\s+(.*)$")
_WHOLE = re.compile(r"^    (\w+)\s+like (\w+)\s+(trained|stored)\s+(.*)$")


def read(method: type[Method]) -> Page:
    """The page of a method. Raises `Bad` for a docstring that is not of the form."""
    text = sys.modules[method.__module__].__doc__ or ""
    lines = text.splitlines()
    where = f"{method.name}: its docstring"
    if not lines or ": " not in lines[0]:
        raise Bad(f"{where} must begin with 'Title: …. Authors year, URL'")
    body = text.split(">>>")[0]
    blocks = re.split(r"\n\s*\n", body)
    url = re.search(r"https?://\S+", blocks[0])
    title, _, source = blocks[0].replace("\n", " ").partition(". ")
    rows, equations = [], []
    sections: dict[str, str] = {}
    for block in blocks[1:]:
        if any(block.lstrip("\n").startswith(h) for h in HEADINGS):
            sections |= _sections(block)
            continue
        found = [_row(line) for line in block.splitlines()]
        if any(found):
            rows += [r for r in found if r]
        elif block.strip():
            equations.append(block.strip("\n"))
    for needed in ("Size", "Merges", "Differs"):
        if needed not in sections:
            raise Bad(f"{where} has no {needed} line")
    order = [h for h in HEADINGS if h in sections]
    if list(sections) != order:
        raise Bad(f"{where} has its headings in the order {', '.join(sections)}; expected {', '.join(order)}")
    return Page(title, source, url[0].rstrip(".,") if url else "", "\n\n".join(equations), tuple(rows), sections)


def _row(line: str) -> Row | None:
    if found := _ROW.match(line):
        return Row(
            found[1], tuple(s.strip() for s in found[2].split(",") if s.strip()), found[3] == "trained", found[4]
        )
    if found := _WHOLE.match(line):
        return Row(found[1], ("*" + found[2],), found[3] == "trained", found[4])
    return None


def _sections(block: str) -> dict[str, str]:
    out: dict[str, str] = {}
    name = ""
    for line in block.strip("\n").splitlines():
        head = line.split(" ", 1)[0]
        if head in HEADINGS:
            name, line = head, line[len(head) :]
        if name:
            out[name] = f"{out.get(name, '')} {line.strip()}".strip()
    return out


def facts(method: type[Method]) -> dict[str, str]:
    """A method's line in a list: its name, family and file, its paper, how much it trains, whether it merges."""
    page, module = read(method), method.__module__
    return dict(
        name=method.name,
        family=module.split(".")[-2],
        file=module.replace(".", "/") + ".py",
        title=page.title,
        size=re.split(r"[:;.,]", page.sections["Size"])[0],
        merges=re.split(r"[:.]", page.sections["Merges"])[0],
        url=page.url,
    )


def markdown(methods: list[dict[str, str]]) -> str:
    """The list of methods as a Markdown table."""
    rows = ["| method | paper | trains | merges |", "|---|---|---|---|"]
    for m in methods:
        title = f"[{m['title']}]({m['url']})" if m["url"] else m["title"]
        rows.append(f"| [{m['name']}]({m['file']}) | {title} | {m['size']} | {m['merges']} |")
    return "\n".join(rows)


def symbols(method: Method, site: Site) -> dict[str, Any]:
    """What the letters in a docstring stand for at a site: the method's fields, the site's shape, facts of the model."""
    arch = site.arch
    table: dict[str, Any] = dict(L=arch.layers, H=arch.heads, G=arch.kv, e=arch.dh, ff=arch.ff, d=arch.d, V=arch.vocab)
    table["width"], table["size"] = site.shape[-1], math.prod(site.shape)
    if site.kind == "activation":
        table["d"] = site.shape[-1]
    elif len(site.shape) == 2:
        table["out"], table["in"] = site.shape
        if site.kind == "embedding":
            table["V"], table["d"] = site.shape
    else:
        table["out"] = site.shape[0]
    table |= {f.name: v for f in fields(method) if isinstance(v := getattr(method, f.name), int | float)}
    return table | method.sizes(site)


def evaluate(expression: str, table: Mapping[str, Any]) -> int:
    """The value of an expression such as "r (in + out)" or "2 d m + m + d", a space meaning multiplication.

    >>> evaluate("r (in + out)", {"r": 2, "in": 3, "out": 4})
    14
    """
    tokens = re.findall(r"[A-Za-z_][A-Za-z0-9_]*|\d+|[()+*/²³-]|−|·", expression)
    if "".join(tokens) != re.sub(r"\s", "", expression):
        raise Bad(f"cannot read the expression {expression!r}")
    out: list[str] = []
    for token in tokens:
        if token in "²³":
            out.append({"²": "**2", "³": "**3"}[token])
            continue
        starts = token == "(" or token[0].isalnum() or token[0] == "_"
        if out and starts and (out[-1] == ")" or out[-1][0].isalnum() or out[-1].startswith("**")):
            out.append("*")
        if token in ("−", "·"):
            out.append({"−": "-", "·": "*"}[token])
        elif token[0].isalpha() or token[0] == "_":
            if token not in table:
                raise Bad(f"expression {expression!r}: {token!r} stands for nothing; known: {', '.join(sorted(table))}")
            out.append(repr(table[token]))
        else:
            out.append(token)
    try:
        return int(eval("".join(out).replace("/", "//"), {"__builtins__": {}}))
    except (SyntaxError, TypeError, ZeroDivisionError) as why:
        raise Bad(f"cannot read the expression {expression!r}: {why}") from None
