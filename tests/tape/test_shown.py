"""Tapes as text, drawing and page: every number is the record's, everything fits, nothing is fetched or run by a label."""

import dataclasses
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len

from minipeft.tape import USUAL, example, lines, page, side_by_side, svg, text, totals
from minipeft.tape.text import chips, kib

EVIL = "<b onload=x>&'\"\x1b[31m\u202e"


@pytest.fixture(scope="module")
def dora():
    return example("dora")


@pytest.fixture(scope="module")
def ladder():
    return example("ladder_side")


def evil(tape):
    return dataclasses.replace(tape, label=EVIL, about=EVIL)


def test_text_tells_of_every_op_once_and_fits(dora, ladder):
    for tape in (dora, ladder):
        said = text(tape)
        assert max(map(cell_len, said.splitlines())) <= 80
        marks = {"taped": "{}", "frozen": "({})", "dropped": "~{}~"}
        column = " ".join(x[0] for x in re.findall(r"(?m)^[│·] .{21}(.*?)( {2,}[\d.<]+)?$", said))
        for part in tape.parts:
            ops = [
                marks[state].format(name) + (f" ×{many}" if many > 1 else "") + (f" {kib(kept)}" if kept else "")
                for name, state, many, kept in chips(part)
            ]
            assert sum(many for _, _, many, _ in chips(part)) == len(part.ops) and ", ".join(ops) in column
        for part in tape.parts:
            assert re.search(rf"(?m)^{'│' if part.state == 'taped' else '·'} {re.escape(part.name)} ", said)
        assert f"ops on the tape: {len(tape.taped)}; KiB it keeps: {kib(tape.kept)}" in said
    said = text(dora)
    assert said.index("rms_norm") < said.index("here the gradient ends") < said.index("layers.0.attn.q")
    assert said.count("✂ stop_gradient after norm: norm off the tape") == 4 and "~norm~" in said


def test_columns_stand_side_by_side(dora, ladder):
    said = text([dora, ladder])
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if re.match(r"[a-z]+[.a-z0-9]* ", line)}
    for name, cells in rows.items():
        for tape, cell in zip((dora, ladder), cells):
            parts = [p for p in tape.parts if p.name == name and p.state == "taped"]
            if name in tape.route:
                assert cell == (kib(sum(p.kept for p in parts)) if parts else cell) and (parts or cell in "·┴")
    assert rows["layers.0.attn.norm"] == ["┴", "·"] and rows["embed.tokens"] == ["·", "┴"]
    assert list(rows).index("layers.0.mlp.res") < list(rows).index("layers.0.out") < list(rows).index("layers.1.attn.q")
    assert re.search(rf"KiB it keeps +{kib(dora.kept)} +{kib(ladder.kept)}\n", said)


@pytest.mark.parametrize("width", [80, 60, 40])
def test_many_columns_are_several_tables(dora, width):
    many = [dataclasses.replace(dora, label=f"method number {n}") for n in range(8)]
    found = list(lines(many, width))
    assert max(cell_len(line.text) for line in found) <= width
    assert sum(kib(dora.kept) in line.text for line in found if "KiB it keeps" in line.text) >= 2
    assert sum(line.text.count(kib(dora.kept)) for line in found if "KiB it keeps" in line.text) == 8


def test_a_drawing_is_well_formed_and_whole(dora, ladder):
    for shown in (dora, [dora, ladder], [evil(dora)], evil(ladder)):
        root = ElementTree.fromstring(svg(shown))
        words = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
        width, height = (float(root.get(k)) for k in ("width", "height"))
        for e in root.iter("{http://www.w3.org/2000/svg}rect"):
            x, y, w, h = (float(e.get(k, 0)) for k in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= width and 0 <= y <= y + h <= height and w >= 0
        tapes = shown if isinstance(shown, list) else [shown]
        assert all(number in words for t in tapes for number in totals(t).values())
        assert not any("\x1b" in w or "\u202e" in w for w in words if w)
    words = [e.text for e in ElementTree.fromstring(svg(dora)).iter("{http://www.w3.org/2000/svg}text")]
    for part in dora.parts:
        for name, _, many, kept in chips(part):
            assert f"{name}{f' ×{many}' if many > 1 else ''}{f' {kib(kept)}' if kept else ''}" in words
    assert "here the gradient ends" in words and words.count("✂ stop_gradient after norm: norm off the tape") == 4


class Tags(HTMLParser):
    def __init__(self, said):
        super().__init__()
        self.found, self.words = [], []
        self.feed(said)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_a_page_switches_between_what_it_holds_and_fetches_nothing(dora, ladder):
    made = page({"dora": [dora, dora], EVIL: [evil(ladder), EVIL]}, [dora, evil(ladder)])
    tags = Tags(made)
    panels = [a for tag, a in tags.found if tag == "section"]
    assert [(a["data-tape"], a["data-from"]) for a in panels] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert ["hidden" in a for a in panels] == [False, True, True, True]
    assert next(a for tag, a in tags.found if tag == "input")["max"] == "1"
    assert not [a for _, a in tags.found if a.keys() & {"src", "href", "onload", "srcset"}]
    assert not re.search(r"url\(|@import|https?:|fetch\(", made) and not {"\x1b", "\u202e"} & set(made)
    assert "prefers-color-scheme:dark" in made and "max-width:40rem" in made and "name=viewport" in made
    ends = [a for tag, a in tags.found if tag == "td" and "ends" in a.get("class", "")]
    assert len(ends) == 2 and tags.words.count("here the gradient ends") == 4  # of three panels, and the legend
    for number in totals(dora).values():
        assert number in tags.words


def test_one_tape_needs_no_slider(dora):
    made = page({"dora": [dora]})
    assert "<input" not in made and "Side by side" not in made


def test_those_side_by_side_are_the_usual_ones():
    tapes = side_by_side(layers=1)
    assert [t.label for t in tapes] == [e.label for e in USUAL] and len({t.kept for t in tapes[:1] + tapes[3:]}) == 3
