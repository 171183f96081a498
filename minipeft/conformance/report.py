"""What a run of `minipeft verify` found, for people and for machines: a matrix, findings, JUnit, Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree

from minipeft.conformance.cases import Case
from minipeft.conformance.findings import Finding, findings, folded
from minipeft.conformance.groups import LETTERS
from minipeft.conformance.results import Result, address
from minipeft.conformance.verdicts import MARKS, grouped, implementations, marks, states, verdict
from minipeft.plain import cell, plain

STYLES = {  # of marks, which differ without them
    "PASS": "green", "READING": "cyan", "PART": "green", "FAIL": "bold red", "ERROR": "bold magenta", "SKIP": "dim", "N/A": "dim",
}  # fmt: skip


def matrix(results: Sequence[Result], width: int = 80) -> Any:
    """Methods × implementations for a terminal, a mark for each group: as many implementations beside each other as fit."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    names, cells = implementations(results), grouped(results)
    methods = list(dict.fromkeys(m for m, _ in cells))
    of = {name: {m: verdict(cells.get((m, name), ())) for m in methods} for name in names}
    between = 3  # columns, and as many after the last
    first = max(map(len, ["method", *methods])) + between
    titles = {n: [len(v.title) for v in of[n].values() if v.there] for n in names}
    needs = {n: len(LETTERS) + max(min(len(n), 24), *titles[n], 1) + 2 * between for n in names}
    blocks: list[list[str]] = [[]]
    for name in names:
        if blocks[-1] and first + sum(needs[n] for n in (*blocks[-1], name)) > width:
            blocks.append([])
        blocks[-1].append(name)
    shown, tables = set(), []
    for block in blocks:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        table.add_column("method", no_wrap=True)
        for name in block:
            table.add_column("".join(LETTERS.values()), no_wrap=True)
            table.add_column(cell(name), overflow="fold", min_width=needs[name] - len(LETTERS) - 2 * between)
        for m in methods:
            row: list[Any] = [cell(m)]
            for name in block:
                words = states(cells.get((m, name), ())).values() if of[name][m].there else ()
                row += [Text.assemble(*((MARKS[w][0], STYLES[w]) for w in words)), str(of[name][m]) if words else "–"]
                shown |= {*words}
            table.add_row(*row)
        tables.append(table)
    return Group(*tables, Text("\n".join(legend(shown)), style="dim"))


def legend(shown: Iterable[str] = MARKS) -> list[str]:
    """What letters and marks mean, in lines; of the states that are shown alone."""
    shown = {*shown}
    said = [f"{mark} {what}" for word, (mark, what) in MARKS.items() if word in shown]
    lines = [
        "  ".join(f"{letter} {group}" for group, letter in LETTERS.items()),
        "  ".join(said[:4]),
        "  ".join(said[4:]),
    ]
    return [line for line in lines if line and said]


def reproduction(r: Result) -> str:
    """The command that judges this case alone."""
    return f"minipeft verify -i {shlex.quote(r.implementation)} --case '{r.id}'"


def told(r: Result) -> list[str]:
    """A failure in lines: what is off, where, by how much, what it equals, how to see it again."""
    lines = [r.reason or r.outcome]
    if r.worst is not None and r.expected is not None and r.found is not None:
        place = f"{r.tensor}{list(r.worst)}"
        lines.append(f"worst element {place}: expected {r.expected:.9g}, found {r.found:.9g}")
    if r.ratio is not None:
        lines.append(f"err/(u·cond) = {r.ratio:.3g} in {r.dtype or 'float64'}")
    if r.diagnosis:
        lines.append(f"equals: {', '.join(r.diagnosis)}")
    if r.url:
        lines.append(r.url)
    return [*lines, reproduction(r)]


def facts(f: Finding, folds: bool = True) -> list[str]:
    """A finding in lines: the cause and where it was seen, the plainest failure, and which others there are."""
    lines = [f.why + (f" (as in {f.seen})" if f.seen else ""), *f.addresses, f"{f.first.id}:", *told(f.first)]
    if f.rest:
        lines.append(f"and {len(f.rest)} more:")
        lines += folded(f.rest) if folds else f.rest
    return lines


def panel(f: Finding, case: Case | None) -> Any:
    """One finding as a panel of rich: the equation above, what is off below."""
    from rich.panel import Panel
    from rich.text import Text

    equation = [*case.equation.splitlines(), ""] if case is not None and f.first.outcome == "FAIL" else []
    who = f"{f.first.implementation} {f.first.version}".strip()
    return Panel(
        Text("\n".join([*equation, *map(plain, facts(f))])), title=Text(plain(f"{f.count} in {who}")), title_align="left",
        border_style="dim" if f.known else "red",
    )  # fmt: skip


def line(f: Finding) -> str:
    """One finding on one line, to be searched for."""
    more = f" (and {len(f.rest)} more)" if f.rest else ""
    return f"{f.first.implementation} {f.first.id}{more}: {f.first.outcome}: {f.why if f.cause else f.first.reason}"


def markdown(results: Sequence[Result], missing: Sequence[str] = ()) -> str:
    """The matrix, what is required and `missing`, and every finding, in Markdown."""
    out = _matrix(results)
    if missing:
        out += ["", "## What is required and not answered", "", *(f"- {_flat(line)}" for line in missing)]
    found = findings(results)
    if found:
        out += ["", "## What is not as wanted", ""]
    for f in found:
        out += [
            f"### {_flat(f.first.implementation)}: {_flat(f.headline)}",
            "",
            *(f"    {' '.join(plain(line).split())}" for line in facts(f)),
            "",
        ]
    return "\n".join(out).rstrip() + "\n"


def field(results: Sequence[Result]) -> str:
    """The matrix of many libraries, and every finding on a line, in Markdown."""
    out = [
        "# Who computes what",
        "",
        "`minipeft verify field FOLDER` wrote this page, and [field.html](field.html), whose cells open to equation, code, worst element,",
        "diagnosis and reproduction. A cell says how many of the cases that concern a library it gets right, and which checks it does not",
        "answer; its marks stand for the groups of checks. [Deviations](deviations.md) explains every failure.",
        "",
        *_matrix(results),
    ]
    for name in implementations(results):
        found = findings(r for r in results if r.implementation == name)
        if found:
            out += ["", f"## {_flat(name)}", "", "| finding | cases | it equals | told in |", "|---|---|---|---|"]
        for f in found:
            url = address(f.first.url)
            link = f"[{_flat(url.rpartition('/')[2])}]({url})" if url else "–"
            which = "<br>".join(_flat(line) for line in folded(r.id for r in f.results))
            like = f"`{_flat(f.cause)}`" if f.cause else "–"
            out.append(f"| {_flat(f.headline)} | {which} | {like} | {link} |")
    return "\n".join(out).rstrip() + "\n"


def _matrix(results: Sequence[Result]) -> list[str]:
    names, cells = implementations(results), grouped(results)
    versions = {r.implementation: r.version for r in results}
    out = [
        "| method | " + " | ".join(_flat(f"{n} {versions[n]}".strip()) for n in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for method in dict.fromkeys(m for m, _ in cells):
        row = []
        for name in names:
            found = verdict(cells.get((method, name), ()))
            row.append(f"`{marks(cells[method, name])}` {found}" if found.there else "–")
        out.append(f"| {_flat(method)} | " + " | ".join(row) + " |")
    return [*out, "", f"`{''.join(LETTERS.values())}`: " + "; ".join(legend())]


def _flat(text: str) -> str:
    """Text of unknown origin on one line of Markdown, where it begins no cell, no tag, no link and no code."""
    return " ".join(plain(text).split()).translate({ord(c): f"\\{c}" for c in "\\|<`[]"})


def junit(results: Sequence[Result], missing: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str:
    """JUnit XML: a suite for every implementation, a test case for every case, and one for what is required and `missing`, in lines by
    implementation. The failures of one finding are told at the first, whose name the others give."""
    root = ElementTree.Element("testsuites")
    of = {(r.implementation, r.id): f for f in findings(results) for r in f.results}
    for name in implementations(results):
        mine = [r for r in results if r.implementation == name]
        count = {o: sum(r.outcome == o for r in mine) for o in STYLES}
        lacks = missing.get(name, ())
        suite = ElementTree.SubElement(
            root, "testsuite", name=_xml(name), tests=str(len(mine) + bool(lacks)), failures=str(count["FAIL"] + bool(lacks)),
            errors=str(count["ERROR"]), skipped=str(count["SKIP"] + count["N/A"]), time=f"{sum(r.seconds for r in mine):.3f}",
        )  # fmt: skip
        verdicts = ElementTree.SubElement(suite, "properties")
        for (method, _), some in grouped(mine).items():
            ElementTree.SubElement(verdicts, "property", name=_xml(method), value=_xml(str(verdict(some))))
        for r in mine:
            case = ElementTree.SubElement(
                suite, "testcase", classname=_xml(f"{name}.{r.method}.{r.check}"), name=_xml(r.id), time=f"{r.seconds:.4f}"
            )  # fmt: skip
            kind = {"FAIL": "failure", "ERROR": "error", "SKIP": "skipped", "N/A": "skipped"}.get(r.outcome)
            if kind == "skipped":
                ElementTree.SubElement(case, kind, message=_xml(r.reason))
            elif kind:
                f = of[name, r.id]
                lines = facts(f, folds=False) if r is f.first else [f"as {f.first.id}: {f.why}", *told(r)]
                said = ElementTree.SubElement(case, kind, message=_xml(f.headline if f.rest or f.cause else r.reason))
                said.text = _xml("\n".join(lines))
        if lacks:
            case = ElementTree.SubElement(suite, "testcase", classname=_xml(name), name="required", time="0")
            ElementTree.SubElement(case, "failure", message=_xml(lacks[0])).text = _xml("\n".join(lacks))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Text without the characters that XML cannot hold, or that do something to a terminal."""
    lines = (plain(line) for line in text.split("\n"))
    return "\n".join(lines).replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")
