"""A method's page, in Markdown."""

from __future__ import annotations

import html
import inspect
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minipeft.conformance import cases as files
from minipeft.conformance import docstrings
from minipeft.conformance.witnesses import closed_form
from minipeft.method import Method, is_weight
from minipeft.settings import choices
from minipeft.site import judged
from minipeft.site.annotated import parts
from minipeft.site.effects import effects, sliders
from minipeft.site.equations import prose, typeset
from minipeft.site.pictures import caption, svgs
from minipeft.site.trained import STEPS, Seen

ROOT = Path(__file__).parents[2]


def page(cls: type[Method], seen: Seen | str, beside: str, first: Seen | str, tape: str = "") -> str:
    """The page: equations, picture, arrays, settings, effects, cost, readings, what others compute, witnesses, cases, file.

    `seen` is what the trained method does, or why that cannot be shown; `first` that of the method `beside`, whose cost stands beside
    its own. `tape` is HTML of its tape.
    """
    about = docstrings.read(cls)
    blocks = [
        f"# {cls.name}",
        f"**{about.title}.** {_linked(about.source)}",
        typeset(about.equations, {f.name for f in fields(cls)} | {row.name for row in about.rows}),
        "## What it does",
        _picture(seen),
    ]
    blocks += [
        "## Arrays",
        table(
            ("array", "shape", "", "starts as"),
            [
                (f"`{r.name}`", f"({', '.join(r.shape)})", "trained" if r.trained else "stored", r.initial)
                for r in about.rows
            ],
        ),
    ]
    blocks.append(f"Trained: {docstrings.size(cls)}.")
    blocks += ["## Settings", table(("setting", "may be"), [(f"`{n}`", said) for n, said in about.settings])]
    if found := effects(cls):
        blocks += ["## What a setting changes", _changing(is_weight(cls)), sliders(cls, found)]
    if tape:
        blocks += [
            "## Its tape",
            "One training step of a tiny model: what is kept for the way back, and where the gradient ends. "
            "[The tape](../tape.md) has others beside it.",
            tape,
        ]
    if not (isinstance(seen, str) or isinstance(first, str)):
        blocks += [f"## Cost beside {beside}", _costs(cls.name, seen, beside, first)]
    blocks += [f"## {head}\n\n{_linked(said)}" for head, said in about.sections.items()]
    if readings := {n: c for n, c in choices(cls).items() if c.reading}:
        blocks += [
            "## Readings",
            table(
                ("setting", "readings, the usual one first"),
                [(f"`{n}`", ", ".join(map(str, _usual_first(cls, n, c)))) for n, c in readings.items()],
            ),
        ]
    blocks += ["## Who computes it otherwise", *judged.told(cls.name)]
    blocks += ["## Witnesses and recorded cases", _witnesses(cls)]
    blocks += ["## The file", *(_annotated(cls))]
    return "\n\n".join(blocks) + "\n"


def _usual_first(cls: Any, name: str, choice: Any) -> list[Any]:
    usual = next(f.default for f in cls.__dataclass_fields__.values() if f.name == name)
    return [usual, *(v for v in choice.options if v != usual)]


def _picture(seen: Seen | str) -> str:
    if isinstance(seen, str):
        return f"Not shown: {seen}."
    trained = (
        f"Trained for {STEPS} steps on the package's task, from loss {seen.losses[0]:.2f} to {seen.losses[-1]:.2f}. "
    )
    return f"<figure class='picture'>{''.join(svgs(seen))}</figure>\n\n{trained}{caption(seen)}"


def _changing(weight: bool) -> str:
    at = "W′ − W at the first matrix that it changes" if weight else "h′ − h of the last hidden state, of one text"
    return (
        f"In a tiny model, with its arrays as if trained: how many numbers are trained, and {at}, as a picture (blue below 0, red above) and by "
        "its singular values."
    )


def _costs(name: str, seen: Seen, beside: str, first: Seen) -> str:
    """A table of what a step takes, here and there."""
    rows = [
        (
            "processor time",
            f"{1e3 * seen.seconds:.0f} ms",
            f"{1e3 * first.seconds:.0f} ms",
            seen.seconds / first.seconds,
        ),
        ("most memory at once", f"{seen.peak / 1e6:.1f} MB", f"{first.peak / 1e6:.1f} MB", seen.peak / first.peak),
        ("numbers trained", f"{seen.trained:,}", f"{first.trained:,}", seen.trained / first.trained),
    ]
    if name == beside:
        return table(("a step of training the package's base", name), [row[:2] for row in rows])
    told = [(*row, f"{ratio:.2f}") for *row, ratio in rows]
    return table(("a step of training the package's base", name, beside, "ratio"), told)


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [
        " | ".join(heads),
        " | ".join("---" for _ in heads),
        *(" | ".join(_cell(c) for c in row) for row in rows),
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(text: str) -> str:
    """A cell's text; a bar in it ends no column, also in what is set as code."""
    if "|" not in text:
        return text
    return re.sub(r"`([^`]*)`", lambda m: f"<code>{html.escape(m[1])}</code>", text).replace("|", "&#124;")


def _linked(text: str) -> str:
    """Text with its addresses as links, and what would be markup as it stands."""
    said = re.sub(r"([*_<\[\]])", r"\\\1", text)
    return re.sub(r"https?://\S+?(?=[.,;)]*(\s|$))", lambda m: f"<{m[0].replace(chr(92), '')}>", said)


def _witnesses(cls: type[Method]) -> str:
    name = cls.name
    found: Counter[str] = Counter()
    shapes: set[str] = set()
    said: set[str] = set()
    if name in files.methods_in():
        for case in files.load(methods=[name]):
            found[case.check] += 1
            said |= set(case.witnesses)
            if "W" in case.inputs:
                shapes.add(" × ".join(map(str, case.inputs["W"].shape)))
    lines = []
    if closed_form(name):
        lines.append(f"- a closed form, written apart: `minipeft/conformance/witnesses/{name}.py`")
    if find_spec(f"minipeft.interop.peft.{name}"):
        lines.append("- Hugging Face PEFT, live and by recorded adapters: [every option](../peft.md)")
    if said:
        lines.append(f"- of single cases: {'; '.join(sorted(said))}")
    if found:
        of = f", with matrices of {' and '.join(sorted(shapes))}" if shapes else ""
        lines.append(
            f"- {sum(found.values())} recorded cases{of}: "
            + ", ".join(f"{n} {check}" for check, n in sorted(found.items()))
        )
        lines.append(f"\n`minipeft verify -i YOURS {name}` judges by them.")
    return "\n".join(lines)


def _annotated(cls: type[Method]) -> list[str]:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    path = Path(inspect.getsourcefile(cls) or "").relative_to(ROOT)
    rows = []
    for part in parts(cls):
        code = highlight(part.code, PythonLexer(), HtmlFormatter(cssclass="highlight"))
        rows.append(f"<div class='prose'><p>{prose(part.prose)}</p></div><div class='code'>{code}</div>")
    return [f"`{path}`", "<div class='annotated'>" + "".join(rows) + "</div>"]
