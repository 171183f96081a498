"""Tapes as a drawing: one with its ops, or several side by side. In light and dark, as the reader has it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

from minipeft.plain import plain
from minipeft.tape.record import DROPPED, FROZEN, TAPED, Part, Tape, layer_of
from minipeft.tape.text import chips, kept_in, kib, part_names, shape_of, told, totals

WIDE = 760
COLOURS = """
--back:#fff;--ink:#1f2933;--faint:#6b7280;--line:#d7dbe0;--band:#f6f7f9;
--tape:#0f766e;--soft:#cdeae6;--frozen:#e8eaed;--off:#9333a8;--offsoft:#f3e3f7;--end:#c2261d;--train:#92500a;--trainsoft:#fdeccc"""
DARK = """
--back:#15181c;--ink:#e5e7eb;--faint:#9aa3ad;--line:#343a42;--band:#1c2025;
--tape:#4fd1c0;--soft:#134842;--frozen:#2a2f36;--off:#d08ae0;--offsoft:#43204c;--end:#ff7b70;--train:#f0b55a;--trainsoft:#4a3412"""
STYLE = f"""
svg{{{COLOURS};background:var(--back)}}
@media(prefers-color-scheme:dark){{svg{{{DARK}}}}}
text{{font:11px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:var(--ink)}}
.title{{font:600 17px system-ui,sans-serif}}.about,.legend{{font:11.5px system-ui,sans-serif;fill:var(--faint)}}
.head{{font:600 12px system-ui,sans-serif}}.big{{font:600 16px system-ui,sans-serif}}
.faint{{fill:var(--faint)}}.band{{fill:var(--band)}}.back{{fill:var(--back)}}
.taped{{fill:var(--soft)}}.frozen{{fill:var(--frozen)}}.dropped{{fill:var(--offsoft)}}.array{{fill:var(--trainsoft)}}
.t-frozen{{fill:var(--faint)}}.t-dropped{{fill:var(--off);text-decoration:line-through}}.t-array{{fill:var(--train)}}
.t-stop{{fill:var(--off)}}.t-end{{fill:var(--end);font:600 11.5px system-ui,sans-serif}}
.bar{{fill:var(--tape)}}.end{{fill:var(--end);stroke:var(--end);stroke-width:3}}.l-taped{{stroke:var(--tape);stroke-width:4}}
.l-frozen,.l-dropped{{stroke:var(--line);stroke-width:4}}.rule{{stroke:var(--line)}}
"""
LEGEND = {
    TAPED: "on the tape, with the KiB that it keeps",
    FROZEN: "frozen: nothing is kept",
    "array": "trained",
    DROPPED: "cut, or led nowhere",
    "end": "here the gradient ends",
}
LETTER = 6.65  # pixels that a letter of this font is wide


class Canvas:
    """Elements one below another."""

    def __init__(self) -> None:
        self.y, self.under, self.over = 0.0, [], []  # type: ignore[var-annotated]

    def rect(self, x: float, y: float, w: float, h: float, kind: str, r: float = 4, title: str = "") -> None:
        """A rectangle; one of the kind "band" lies under everything else."""
        tip = f"<title>{_safe(title)}</title></rect>" if title else "</rect>"
        where = self.under if kind == "band" else self.over
        where.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{r}" class="{kind}">{tip}')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A line."""
        self.over.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')

    def write(self, x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> None:
        """Text whose line begins, or ends, there."""
        self.over.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{_safe(said)}</text>')

    def chip(self, x: float, said: str, kind: str, title: str = "") -> float:
        """A word in a box; returns where the next may begin."""
        w = LETTER * len(said) + 12
        self.rect(x, self.y, w, 18, kind, title=title)
        self.write(x + 6, self.y + 13, said, f"t-{kind}")
        return x + w + 4

    def page(self, title: str) -> str:
        """The whole drawing."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {self.y:.0f}" width="{WIDE}" height="{self.y:.0f}" role="img">'
        back = f'<rect width="{WIDE}" height="{self.y:.0f}" class="back"/>'
        return "\n".join(
            [head, f"<title>{_safe(title)}</title><style>{STYLE}</style>", back, *self.under, *self.over, "</svg>", ""]
        )


def svg(tapes: Tape | Sequence[Tape]) -> str:
    """A drawing of one tape, from the first part to the loss; of several as columns."""
    return _one(tapes) if isinstance(tapes, Tape) else _beside(list(tapes))


def _safe(said: str) -> str:
    return escape(plain(said))


def _one(tape: Tape) -> str:
    c = Canvas()
    c.y = 30
    c.write(16, c.y, tape.label, "title")
    for line in textwrap.wrap(tape.about, 118):
        c.y += 17
        c.write(16, c.y, line, "about")
    c.y += 32
    for i, (said, number) in enumerate(totals(tape).items()):
        c.write(16 + 184 * i, c.y, number, "big")
        c.write(16 + 184 * i, c.y + 16, said, "about")
    c.y += 36
    most = max((p.kept for p in tape.parts), default=0) or 1
    end, run, layer, top = tape.end, 1, None, 0.0
    for part in tape.parts:
        if part.run != run:
            run, layer = part.run, None
            c.write(16, c.y + 16, f"pass {run}", "head")
            c.y += 24
        if part.layer != layer:
            layer, top = part.layer, c.y
            if layer is not None:
                c.write(44, c.y + 15, part.name[: part.name.index("layers")] + f"layers.{layer}", "head")
                c.line(24, c.y, 24, c.y + 22, f"l-{part.state}")
                c.y += 22
        if part == end:
            c.line(16, c.y + 12, WIDE - 16, c.y + 12, "end")
            c.rect(40, c.y + 3, 156, 18, "back")
            c.write(44, c.y + 16, "here the gradient ends", "t-end")
            c.y += 26
        begun = c.y
        _part(c, part, tape, most)
        c.line(24, begun, 24, c.y, f"l-{part.state}")
        if part.layer is not None and part.layer % 2 == 0:
            c.rect(
                12, begun if top < begun - 30 else top, WIDE - 24, c.y - (begun if top < begun - 30 else top), "band", 0
            )
    for a in tape.elsewhere:
        c.y += 2
        c.chip(44, f"{a.key.partition('/')[2].strip(':')} {shape_of(a.shape)}, of no one part", "array")
        c.y += 22
    return _legend(c, tape.label)


def _part(c: Canvas, part: Part, tape: Tape, most: int) -> None:
    c.y += 2
    name = part.name.partition("layers.")[2].partition(".")[2] if part.layer is not None else part.name
    c.write(44, c.y + 13, name, "" if part.state == TAPED else "t-frozen")
    if part.state == TAPED:
        c.rect(640, c.y + 4, 54 * part.kept / most, 10, "bar", 2)
        c.write(WIDE - 16, c.y + 13, kib(part.kept), "" if part.kept else "faint", "end")
    words = [
        (f"{n}{f' ×{many}' if many > 1 else ''}{f' {kib(b)}' if b else ''}", state) for n, state, many, b in chips(part)
    ]
    words += [(f"{a.name} {shape_of(a.shape)}", "array") for a in part.arrays]
    x = 156.0
    for said, kind in words:
        if x + LETTER * len(said) + 12 > 632 and x > 156:
            x, c.y = 156.0, c.y + 21
        x = c.chip(x, said, kind)
    for said in told(tape, part):
        c.y += 21
        c.write(156, c.y + 13, f"✂ {said}", "t-stop")
    c.y += 22


def _beside(tapes: list[Tape]) -> str:
    c = Canvas()
    names, first = part_names(tapes), 150.0
    column = (WIDE - first - 12) / len(tapes)
    labels = [textwrap.wrap(t.label, int(column / 7)) for t in tapes]
    c.y = 12
    for i in range(max(map(len, labels))):
        c.y += 15
        for j, label in enumerate(labels):
            c.write(first + column * (j + 0.5), c.y, label[i] if i < len(label) else "", "head", "middle")
    c.y += 10
    most = max((kept_in(t, n) or 0 for t in tapes for n in names), default=0) or 1
    layer = None
    for name in names:
        if layer_of(name) != layer:
            layer = layer_of(name)
            c.y += 7
        if layer is not None and layer % 2 == 0:
            c.rect(6, c.y - 1, WIDE - 12, 19, "band", 0)
        c.write(14, c.y + 12, name, "faint" if all(kept_in(t, name) is None for t in tapes) else "")
        for j, tape in enumerate(tapes):
            x, w, kept = first + column * j + 4, column - 8, kept_in(tape, name)
            if kept is None:
                if name in tape.route:
                    c.rect(x, c.y + 5, w, 7, "frozen", 3)
                continue
            c.rect(x, c.y + 1, w, 15, "taped", 3)
            c.rect(x, c.y + 1, (w - 38) * kept / most, 15, "bar", 3)
            c.write(x + w - 5, c.y + 12.5, kib(kept), "" if kept else "faint", "end")
            if tape.end and tape.end.name == name:
                c.line(x - 2, c.y - 1, x + w + 2, c.y - 1, "end")
        c.y += 18
    c.y += 8
    c.line(12, c.y, WIDE - 12, c.y, "rule")
    c.y += 4
    for said, row in zip(totals(tapes[0]), zip(*(totals(t).values() for t in tapes))):
        c.y += 19
        c.write(14, c.y, said, "about")
        for j, number in enumerate(row):
            c.write(first + column * (j + 1) - 9, c.y, number, "head", "end")
    c.y += 12
    return _legend(c, ", ".join(t.label for t in tapes))


def _legend(c: Canvas, title: str) -> str:
    c.y += 14
    x = 16.0
    for kind, said in LEGEND.items():
        if f'class="{kind}"' in "".join(c.over):
            c.rect(x, c.y + 5 * (kind == "end"), 14, 1 if kind == "end" else 12, kind, 0 if kind == "end" else 3)
            c.write(x + 19, c.y + 10, said, "legend")
            x += 40 + 6.0 * len(said)
    c.y += 26
    return c.page(f"The tape of {title}")
