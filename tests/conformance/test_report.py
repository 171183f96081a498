"""Reports of results from programs that are not ours: well-formed, complete, and nothing unescaped."""

import math
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from minipeft.conformance import cases as files
from minipeft.conformance import page, report
from minipeft.conformance.results import OUTCOMES, Result

HOSTILE = "<script>alert('x')</script>\x00\x1b[31m & \"quotes\"\nsecond line"
RESULTS = [
    Result("peft", "1", "lora.forward.usual", "PASS", ratio=0.5),
    Result("peft", "1", "lora.grad.usual", "FAIL", "A", (0, 1), 1.0, math.nan, math.inf, None, "float64", 0.1, HOSTILE, "javascript:x"),
    Result(HOSTILE, HOSTILE, "dora.forward.usual", "ERROR", reason=HOSTILE, url="https://example.org/<b>"),
    Result("peft", "1", "dora.grad.grad=full", "READING", readings={"grad": "full"}),
    Result("peft", "1", "houlsby.forward.usual", "SKIP", reason="not there"),
    Result("peft", "1", "dora.grad.usual", "N/A", reason="its reading is grad=full"),
    Result("keras", "3", "lora.forward.usual", "FAIL", "y", (0,), 1.0, 2.0, 1e9, 0.5, diagnosis=("alpha_ignored",)),
]  # fmt: skip


@pytest.fixture(scope="module")
def cases():
    return {c.id: c for c in files.load(methods=["lora", "dora"])}


def test_every_outcome_is_here():
    assert {r.outcome for r in RESULTS} == set(OUTCOMES)


def test_junit_counts_and_parses():
    root = ElementTree.fromstring(report.junit(RESULTS))
    suites = {s.get("name"): s for s in root}
    assert len(suites) == 3
    peft = suites["peft"]
    assert (peft.get("tests"), peft.get("failures"), peft.get("errors"), peft.get("skipped")) == ("5", "1", "0", "2")
    assert "alpha_ignored" in suites["keras"].find("testcase/failure").text


def test_markdown_has_the_matrix_and_the_failures():
    text = report.markdown(RESULTS)
    assert "| lora | FAIL 1/2 |" in text and "| FAIL 0/1 |" in text
    assert "equals: alpha_ignored" in text and "minipeft verify -i keras --case 'lora.forward.usual'" in text
    assert "\x00" not in text.replace("\x00", "") and text.count("### ") == 3


def test_terminal(cases):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.matrix(RESULTS[:1] + RESULTS[3:4]))
    console.print(report.failure(RESULTS[-1], cases["lora.forward.usual"]))
    text = console.export_text()
    assert "PASS (reading)" in text and "err/(u·cond) = 1e+09" in text and "W' = W + s B A" in text


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.scripts = [], [], 0

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.scripts += tag == "script"
        self.links += [v for k, v in attrs if k in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page(cases):
    text = page.html(RESULTS, cases, dict(version="0", note=HOSTILE))
    tags = Tags()
    tags.feed(text)
    assert not tags.open and tags.scripts == 1
    assert all(v.startswith(("#", "https://example.org/")) for v in tags.links), tags.links
    assert "alert('x')" not in text and "&lt;script&gt;" in text
    assert all(word in text for word in ("alpha_ignored", "lora.py", "W&#x27; = W + s B A", "its reading is grad=full"))
    anchors = [v[1:] for v in tags.links if v.startswith("#")]
    assert anchors and all(f'id="{a}"' in text for a in anchors)
