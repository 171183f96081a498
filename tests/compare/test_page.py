"""The page and the plots."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from made_up import SEEDS, outcomes

from minipeft.compare import Outcome, summarise
from minipeft.compare.page import COLUMNS, html_page, plotting, png_plots
from minipeft.errors import Bad

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def page():
    made = outcomes(lora=-0.3, dora=-0.25, ia3=-0.1)
    made["bitfit"] = [Outcome("bitfit", s, note="no <biases>") for s in SEEDS]
    return html_page(summarise(made), "about & so on, $\\frac[red]\x1b[31m\u202e")


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_labels_of_others_do_nothing_to_the_page(page):
    assert r"$\frac[red]\x1b[31m\u202e" in page and not {"\x1b", "\u202e"} & set(page)


def test_every_column_says_what_it_means(page):
    tips = [a["title"] for tag, a in Tags(page).found if tag == "th"]
    assert tips == [why for why, _ in COLUMNS.values()] and all(len(t) > 10 for t in tips)
    assert sum(tag == "dt" for tag, _ in Tags(page).found) == len(COLUMNS)


def test_methods_lead_to_their_papers_and_nothing_is_fetched(page):
    tags = Tags(page).found
    links = {a["href"] for tag, a in tags if tag == "a"}
    assert {"https://arxiv.org/abs/2106.09685", "https://arxiv.org/abs/2402.09353"} <= links
    assert not any(tag in ("script", "link", "img", "iframe") or "src" in a for tag, a in tags)
    assert not re.search(r"url\((?!#)", page)


def test_a_failed_method_keeps_its_row(page):
    assert "no &lt;biases&gt;" in page and "about &amp; so on" in page


def test_drawings_have_ids_of_their_own(page):
    drawings = [ElementTree.fromstring(x) for x in re.findall(r"<svg.*?</svg>", page, re.S)]
    ids = [e.get("id") for d in drawings for e in d.iter() if e.get("id")]
    assert len(drawings) == 4 and len(ids) == len(set(ids)) > 20
    used = {x for d in drawings for e in d.iter() for k, v in e.attrib.items() for x in re.findall(r"#([\w-]+)", v) if "href" in k or "url" in v}  # fmt: skip
    assert used and used <= set(ids)


def test_the_png():
    assert png_plots(summarise(outcomes(lora=-0.3)))[:4] == b"\x89PNG"


def test_without_matplotlib_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(Bad, match="plots need matplotlib: pip install"):
        plotting()
