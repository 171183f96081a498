"""What a run of `minipeft verify` found, for people and for machines: a matrix, failures one by one, JUnit, Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree

from minipeft.conformance.cases import Case
from minipeft.conformance.results import Result, address
from minipeft.plain import cell, plain

STYLES = {"PASS": "green", "READING": "cyan", "FAIL": "bold red", "ERROR": "bold magenta", "SKIP": "dim", "N/A": "dim"}


def implementations(results: Iterable[Result]) -> list[str]:
    """Their names, in order."""
    return list(dict.fromkeys(r.implementation for r in results))


def grouped(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """{(method, implementation): results}, sorted by method."""
    out: dict[tuple[str, str], list[Result]] = {}
    for r in sorted(results, key=lambda r: r.method):
        out.setdefault((r.method, r.implementation), []).append(r)
    return out


def verdict(results: Sequence[Result]) -> tuple[str, str]:
    """One word for several results, and how many of those judged are right: ("FAIL", "12/14")."""
    outcomes = [r.outcome for r in results]
    judged = [o for o in outcomes if o not in ("SKIP", "N/A")]
    right = sum(o in ("PASS", "READING") for o in judged)
    word = next((w for w in ("FAIL", "ERROR", "READING", "PASS") if w in outcomes), "SKIP")
    return word, f"{right}/{len(judged)}" if judged else "–"


def matrix(results: Sequence[Result], width: int = 80) -> Any:
    """Methods × implementations for a terminal: as many implementations beside each other as its width allows."""
    from rich.console import Group
    from rich.table import Table

    names, cells = implementations(results), grouped(results)
    methods = list(dict.fromkeys(m for m, _ in cells))
    columns = {}
    for name in names:
        judged = [verdict(cells.get((method, name), [])) for method in methods]
        said = ["–" if word == "SKIP" else "PASS (reading)" if word == "READING" else word for word, _ in judged]
        columns[name] = [
            (f"{s}{'' if count == '–' else ' ' + count}", STYLES[word]) for s, (word, count) in zip(said, judged)
        ]
    first = max(map(len, ["method", *methods]), default=0) + 3
    blocks: list[list[str]] = [[]]
    left = width - first
    for name, column in columns.items():
        needs = max(len(name), *(len(text) for text, _ in column)) + 3
        if blocks[-1] and needs > left:
            blocks.append([])
            left = width - first
        blocks[-1].append(name)
        left -= needs
    tables = []
    for block in blocks:
        table = Table("method", *map(cell, block), header_style="bold", pad_edge=False)
        for i, method in enumerate(methods):
            row = (columns[name][i] for name in block)
            table.add_row(cell(method), *(f"[{style}]{cell(text)}[/]" for text, style in row))
        tables.append(table)
    return Group(*tables)


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


def failure(r: Result, case: Case | None) -> Any:
    """One failure as a panel of rich: the equation above, what is off below."""
    from rich.panel import Panel
    from rich.text import Text

    equation = case.equation.splitlines() if case is not None else []
    said = [plain(line) for line in told(r)]
    title = Text(plain(f"{r.implementation} {r.version}  {r.id}  {r.outcome}"))
    body = Text("\n".join([*equation, "", *said] if equation else said))
    return Panel(body, title=title, title_align="left", border_style="red")


def markdown(results: Sequence[Result]) -> str:
    """The matrix and every failure, in Markdown."""
    out = _matrix(results)
    wrong = [r for r in results if r.outcome in ("FAIL", "ERROR")]
    if wrong:
        out += ["", "## What is not as wanted", ""]
    for r in wrong:
        out += [
            f"### {_flat(r.implementation)}: {_flat(r.id)}: {r.outcome}",
            "",
            *(f"    {' '.join(plain(line).split())}" for line in told(r)),
            "",
        ]
    return "\n".join(out).rstrip() + "\n"


def field(results: Sequence[Result]) -> str:
    """The matrix of many libraries, and a line for everything that is not as wanted, in Markdown."""
    out = [
        "# Who computes what",
        "",
        "`minipeft verify field FOLDER` wrote this page, and [field.html](field.html), whose cells open to equation, code, worst element,",
        "diagnosis and reproduction. A cell says how many of the cases that concern a library it gets right. [Deviations](deviations.md)",
        "explains every failure.",
        "",
        *_matrix(results),
    ]
    for name in implementations(results):
        wrong = [r for r in results if r.implementation == name and r.outcome in ("FAIL", "ERROR")]
        if wrong:
            out += ["", f"## {_flat(name)}", "", "| case | found | it equals | told in |", "|---|---|---|---|"]
        for r in wrong:
            like = ", ".join(f"`{_flat(d)}`" for d in r.diagnosis) or "–"
            url = address(r.url)
            link = f"[{_flat(url.rpartition('/')[2])}]({url})" if url else "–"
            out.append(f"| {_flat(r.id)} | {_flat(r.reason.split('. ')[0])} | {like} | {link} |")
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
            word, count = verdict(cells.get((method, name), []))
            row.append("–" if word == "SKIP" else f"{'PASS (reading)' if word == 'READING' else word} {count}")
        out.append(f"| {_flat(method)} | " + " | ".join(row) + " |")
    return out


def _flat(text: str) -> str:
    """Text of unknown origin on one line of Markdown, where it begins no cell, no tag, no link and no code."""
    return " ".join(plain(text).split()).translate({ord(c): f"\\{c}" for c in "\\|<`[]"})


def junit(results: Sequence[Result]) -> str:
    """JUnit XML: a suite for every implementation, a test case for every case."""
    root = ElementTree.Element("testsuites")
    for name in implementations(results):
        mine = [r for r in results if r.implementation == name]
        count = {o: sum(r.outcome == o for r in mine) for o in STYLES}
        suite = ElementTree.SubElement(
            root, "testsuite", name=_xml(name), tests=str(len(mine)), failures=str(count["FAIL"]), errors=str(count["ERROR"]),
            skipped=str(count["SKIP"] + count["N/A"]), time=f"{sum(r.seconds for r in mine):.3f}",
        )  # fmt: skip
        for r in mine:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=_xml(f"{name}.{r.method}.{r.check}"),
                name=_xml(r.id),
                time=f"{r.seconds:.4f}",
            )
            kind = {"FAIL": "failure", "ERROR": "error", "SKIP": "skipped", "N/A": "skipped"}.get(r.outcome)
            if kind:
                said = ElementTree.SubElement(case, kind, message=_xml(r.reason))
                said.text = _xml("\n".join(told(r))) if kind != "skipped" else None
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Text without the characters that XML cannot hold, or that do something to a terminal."""
    lines = (plain(line) for line in text.split("\n"))
    return "\n".join(lines).replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")
