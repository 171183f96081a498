"""A method's page: its docstring taken apart, and what its declarations say, in words."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from minipeft.arrays import Array, Each, Network, Parts, declared
from minipeft.drawing import Facts, There, there
from minipeft.errors import Bad, Unfit
from minipeft.expressions import plainly
from minipeft.method import Method, is_weight
from minipeft.settings import explained
from minipeft.targets import select

HEADINGS = ("Merges", "Positions", "Dropout", "Differs")


@dataclass(frozen=True)
class Row:
    """One line of the table of arrays: a name, the expressions of its shape, whether it is trained, how it starts, when it is there."""

    name: str
    shape: tuple[str, ...]
    trained: bool
    start: str
    when: str = ""
    shared: str = ""  # by which sites

    @property
    def initial(self) -> str:
        """How it starts and when it is there, in words."""
        only = f"; only with {plainly(self.when)}" if self.when else ""
        return f"{self.start}{f'; shared by {self.shared}' if self.shared else ''}{only}"


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
    return Page(title, source, address, "\n\n".join(equations), tuple(rows(method)), said, sections)


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
            there_are = f"n < {it.how_many}"
            whens = ((own, a, f"{there_are} and ({a.when})" if a.when else there_are) for own, a in it.arrays)
            yield from (_row(f"{own}{{n}}", a, when) for own, a, when in whens)
        elif isinstance(it, Network):
            yield Row(
                f"{name}, a network",
                ("as the base's",),
                True,
                "1 in norms, 0 in biases, else N(0, 0.02²)",
                "",
                "all sites",
            )
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
    shared = "all sites" if a.shared else "sites of a group" if a.shared_by else ""
    return Row(name, shape, a.trained, a.start.says, when, shared)


def size(method: type[Method]) -> str:
    """How many numbers are trained as a formula, with the usual settings, at the site that has the most arrays."""
    from minipeft.conformance import tiny

    usual = method()
    where = next((found for family in ("llama", "bert") if (found := _attached(tiny.model(family), usual))), [])
    if not where:
        return "as its targets say"
    shared = [it for it in there(Facts(usual, where[0], sites=where), shared=True) if it.trained]
    own = max(([it for it in there(Facts(usual, s, sites=where)) if it.trained] for s in where), key=len)
    counts: dict[tuple[str, ...], int] = {}
    for it in own or shared:
        number, letters = _factors(it)
        counts[letters] = counts.get(letters, 0) + number
    terms = [(*([str(n)] if n > 1 else []), *letters) for letters, n in counts.items()]
    first = terms[0][0] if terms else ""
    if len(terms) > 1 and all(t[:1] == (first,) for t in terms):  # what all have in common, before a bracket
        text = f"{first} ({' + '.join(' '.join(t[1:]) or '1' for t in terms)})"
    else:
        text = " + ".join(" ".join(t) or "1" for t in terms) or "0"
    per = "per site" if not is_weight(method) else "per adapted matrix" if len(where[0].shape) > 1 else "per bias"
    return f"{text} {'in all' if shared and not own else per}"


def _attached(model: Any, method: Method) -> list[Any]:
    try:
        return select(model, method.targets)
    except Unfit:
        return []


def _factors(it: There) -> tuple[int, tuple[str, ...]]:
    """How many numbers an array has: a number times letters, what is no product in brackets, widths of the site last."""
    if it.array.shape == (...,):
        return 1, ("size",)
    wide, number = ("in", "out", "d", "half", "d_model"), 1
    letters: list[str] = []
    for dimension in it.array.shape:
        if chosen := re.fullmatch(r"(.+) if (.+) else (.+)", dimension):
            dimension = chosen[1] if it.facts.value(chosen[2]) else chosen[3]
        product = re.fullmatch(r"[\w ]+", dimension) or re.fullmatch(r"\w+ \([^()]*\)", dimension)
        for factor in re.findall(r"\([^()]*\)|\w+", dimension) if product else [f"({dimension})"]:
            number, letters = (number * int(factor), letters) if factor.isdigit() else (number, [*letters, factor])
    return number, tuple(sorted(letters, key=lambda s: s in wide))


def facts(method: type[Method]) -> dict[str, str]:
    """A method's line in a list: its name, family and file, its paper, how much it trains, whether it merges."""
    page, module = read(method), method.__module__
    return dict(
        name=method.name,
        family=module.split(".")[-2],
        file=module.replace(".", "/") + ".py",
        title=page.title,
        size=size(method),
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
