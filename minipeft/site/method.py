"""A method's page, in Markdown."""

from __future__ import annotations

import html
import inspect
import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minipeft.conformance import cases as files
from minipeft.conformance import docstrings
from minipeft.conformance.witnesses import closed_form
from minipeft.method import Method
from minipeft.settings import choices
from minipeft.site.annotated import parts
from minipeft.site.effects import effects
from minipeft.site.equations import typeset
from minipeft.site.pictures import caption, svg
from minipeft.site.trained import STEPS, Seen

ROOT = Path(__file__).parents[2]


def page(cls: type[Method], seen: Seen | str, beside: str, cost: dict[str, float] | None, tape: str = "") -> str:
    """The page: equations, picture, arrays, settings, effects, cost, readings, what others compute, witnesses, cases, file.

    `seen` is what the trained method does, or why that cannot be shown. `cost` are its time and bytes in a step, in those of
    the method `beside`. `tape` is where the picture of its tape lies.
    """
    about = docstrings.read(cls)
    blocks = [
        f"# {cls.name}",
        f"**{about.title}.** {_linked(about.source)}",
        typeset(about.equations),
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
        blocks += ["## What a setting changes", _sliders(found)]
    if tape:
        blocks += [
            "## Its tape",
            "One training step of a tiny model: what is kept for the way back, and where gradients stop.",
            f"![The tape of {cls.name}]({tape})",
        ]
    if cost:
        rows = [(what, f"{ratio:.2f}") for what, ratio in cost.items()]
        blocks += [
            f"## Cost beside {beside}",
            table(("of a step of training the package's base", f"{beside} = 1"), rows),
        ]
    blocks += [f"## {head}\n\n{_linked(said)}" for head, said in about.sections.items()]
    if readings := {n: c for n, c in choices(cls).items() if c.reading}:
        blocks += [
            "## Readings",
            table(
                ("setting", "readings, the usual one first"),
                [(f"`{n}`", ", ".join(map(str, _usual_first(cls, n, c)))) for n, c in readings.items()],
            ),
        ]
    blocks += ["## Who computes it otherwise", _others(cls.name)]
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
    return f"<figure class='picture'>{svg(seen)}</figure>\n\n{trained}{caption(seen)}"


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [
        " | ".join(heads),
        " | ".join("---" for _ in heads),
        *(" | ".join(c.replace("|", "\\|") for c in row) for row in rows),
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _linked(text: str) -> str:
    """Text with its addresses as links, and what would be markup as it stands."""
    said = re.sub(r"([*_<\[\]])", r"\\\1", text)
    return re.sub(r"https?://\S+?(?=[.,;)]*(\s|$))", lambda m: f"<{m[0].replace(chr(92), '')}>", said)


def _sliders(found: dict[str, list[Any]]) -> str:
    """A slider for each setting; what it says is computed already."""
    out = [
        "At one matrix of a tiny model, with arrays as if trained: numbers trained, ‖W′ − W‖/‖W‖, and the rank of W′ − W."
    ]
    for name, tried in found.items():
        data = html.escape(json.dumps([[str(e.value), f"{e.trained:,}", f"{e.share:.3g}", str(e.rank)] for e in tried]))
        out.append(
            f'<div class="effect" data-rows="{data}"><label>{name} <input type="range" min="0" max="{len(tried) - 1}" value="{len(tried) // 2}">'
            "</label> <output></output></div>"
        )
    return "\n".join(out)


def _others(name: str) -> str:
    """The sections on deviations, and the options of PEFT, that concern this method."""
    text = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    found = [
        part.split("\n")[0]
        for part in re.split(r"^## ", text, flags=re.M)[1:]
        if re.search(rf"[`*]{re.escape(name)}\.", part)
    ]
    links = [f"[{head}](../deviations.md#{head})" for head in found]
    told = f"Examined by hand: {', '.join(links)}." if links else "Nobody that was asked, but for what Differs says."
    return f"{told} [The field](../field.md) has every library's verdict."


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
        rows.append(f"<div class='prose'><p>{_inline(part.prose)}</p></div><div class='code'>{code}</div>")
    return [f"`{path}`", "<div class='annotated'>" + "".join(rows) + "</div>"]


def _inline(text: str) -> str:
    said = html.escape(" ".join(text.split()))
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", re.sub(r"`(.+?)`", r"<code>\1</code>", said))
