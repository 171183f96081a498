"""A method's page: its docstring taken apart, and what its declarations say, in words."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from minipeft.arrays import Array, Each, Parts, declared
from minipeft.errors import Bad
from minipeft.expressions import plainly
from minipeft.method import Method, is_weight
from minipeft.settings import explained

HEADINGS = ("Merges", "Positions", "Dropout", "Differs")


@dataclass(frozen=True)
class Row:
    """One line of the table of arrays: a name, the expressions of its shape, whether it is trained, how it starts, when it is there."""

    name: str
    shape: tuple[str, ...]
    trained: bool
    start: str
    when: str = ""
    shared: bool = False

    @property
    def initial(self) -> str:
        """How it starts and when it is there, in words."""
        only = f"; only with {plainly(self.when)}" if self.when else ""
        return f"{self.start}{'; shared by all sites' if self.shared else ''}{only}"


@dataclass(frozen=True)
class Page:
    """A method's docstring and declarations."""

    title: str
    source: str
    url: str
    equations: str
    rows: tuple[Row, ...]
    settings: tuple[tuple[str, str], ...]  # "r = 8", "an integer from 1 on"
    sections: Mapping[str, str]
    size: str


def read(method: type[Method]) -> Page:
    """The page of a method. Raises `Bad` for a docstring that is not of the form."""
    text = sys.modules[method.__module__].__doc__ or ""
    lines = text.splitlines()
    where = f"{method.name}: its docstring"
    if not lines or ": " not in lines[0]:
        raise Bad(f"{where} must begin with 'Title: …. Authors year, URL'")
    blocks = re.split(r"\n\s*\n", text.split(">>>")[0])
    url = re.search(r"https?://\S+", blocks[0])
    title, _, source = blocks[0].replace("\n", " ").partition(". ")
    equations = []
    sections: dict[str, str] = {}
    for block in blocks[1:]:
        if any(block.lstrip("\n").startswith(h) for h in HEADINGS):
            sections |= _sections(block)
        elif block.strip():
            equations.append(block.strip("\n"))
    for needed in ("Merges", "Differs"):
        if needed not in sections:
            raise Bad(f"{where} has no {needed} line")
    order = [h for h in HEADINGS if h in sections]
    if list(sections) != order:
        raise Bad(f"{where} has its headings in the order {', '.join(sections)}; expected {', '.join(order)}")
    said = tuple((f"{f.name} = {f.default!r}", explained(f)) for f in fields(method))
    address = url[0].rstrip(".,") if url else ""
    return Page(title, source, address, "\n\n".join(equations), tuple(rows(method)), said, sections, size(method))


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


# --- declarations in words --------------------------------------------------------------------------------------------


def rows(method: type[Method]) -> Iterator[Row]:
    """The table of arrays, in the order of declaration; of numbered ones a row each, with n in its name or k of its part."""
    for name, it in declared(method).order:
        if isinstance(it, Array):
            yield _row(name, it, it.when)
        elif isinstance(it, Each):
            yield from (_row(f"{own}{{n}}", a, f"n < {it.how_many}") for own, a in it.arrays)
        elif isinstance(it, Parts):
            starts = dict(it.starts)
            for own, a in declared(_part(method, it)).arrays.items():
                trained = " trained with " + plainly(it.trained) if it.trained else ""
                start = starts[own].says if own in starts else f"as in part k's {own}"
                yield Row(f"{own}{{k}}", tuple(map(str, a.shape)), False, start + ";" * bool(trained) + trained, a.when)


def _part(method: type[Method], part: Parts) -> Any:
    return next(f.metadata["parts"] for f in fields(method) if f.name == part.setting)


def _row(name: str, a: Array, when: str) -> Row:
    shape = ("the site's",) if a.shape == (...,) else tuple(map(str, a.shape))
    return Row(name, shape, a.trained, a.start.says, when, a.shared)


def size(method: type[Method]) -> str:
    """How many numbers are trained: the trained arrays' shapes multiplied out, equal ones counted together."""
    always: dict[str, int] = {}
    sometimes = []
    every = [(r, _product(r.shape)) for r in rows(method) if r.trained]
    for row, product in every:
        if row.when:
            sometimes.append(f"{product} with {plainly(row.when)}")
        else:
            always[product] = always.get(product, 0) + 1
    terms = [product if n == 1 else f"{n} {product}" for product, n in always.items()]
    whole = " + ".join(terms) or ("" if sometimes else "nothing")
    more = "; ".join(sometimes[:3]) + ("; …" if len(sometimes) > 3 else "")
    shared = [r.shared for r, _ in every]
    per = "in all" if shared and all(shared) else f"per {'parameter' if is_weight(method) else 'site'}"
    return f"{whole}{' + ' if whole and more else ''}{more} {per}".strip()


def _product(shape: tuple[str, ...]) -> str:
    """Dimensions multiplied, what is no product in brackets; widths of the site last."""
    if shape == ("the site's",):
        return "size"
    wide = ("in", "out", "d", "half", "size")
    factors = [s if re.fullmatch(r"[\w ]+", s) else f"({s})" for s in shape if s != "1"]
    return " ".join(sorted(factors, key=lambda s: (s in wide, not s[0].isdigit(), s))) or "1"


def facts(method: type[Method]) -> dict[str, str]:
    """A method's line in a list: its name, family and file, its paper, how much it trains, whether it merges."""
    page, module = read(method), method.__module__
    return dict(
        name=method.name,
        family=module.split(".")[-2],
        file=module.replace(".", "/") + ".py",
        title=page.title,
        size=page.size,
        merges=re.split(r"[:.]", page.sections["Merges"])[0],
        url=page.url,
    )


def markdown(methods: list[dict[str, str]]) -> str:
    """The list of methods as a Markdown table."""
    lines = ["| method | paper | trains | merges |", "|---|---|---|---|"]
    for m in methods:
        title = f"[{m['title']}]({m['url']})" if m["url"] else m["title"]
        lines.append(f"| [{m['name']}]({m['file']}) | {title} | {m['size']} | {m['merges']} |")
    return "\n".join(lines)
