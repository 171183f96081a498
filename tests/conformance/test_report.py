"""Reports of results from programs that are not ours: well-formed, complete, and nothing unescaped."""

import math
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from minipeft.conformance import cases as files
from minipeft.conformance import page, report
from minipeft.conformance.findings import findings
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
    verdicts = {p.get("name"): p.get("value") for p in peft.findall("properties/property")}
    assert verdicts["lora"] == "FAIL 1 of 2 (1 wrong: grad)"
    failure = suites["keras"].find("testcase/failure")
    assert "alpha_ignored" in failure.text and "1 case fails: the scale is 1" in failure.get("message")
    root = ElementTree.fromstring(report.junit(RESULTS, {"keras": ["keras lora: required and not answered: grad (1)"]}))
    keras = next(s for s in root if s.get("name") == "keras")
    assert (keras.get("tests"), keras.get("failures")) == ("2", "2")
    assert "not answered: grad" in keras.find("testcase[@name='required']/failure").get("message")


def test_markdown_has_the_matrix_and_the_failures():
    text = report.markdown(RESULTS)
    assert (
        "| lora | `✓✗·····` FAIL 1 of 2 (1 wrong: grad) |" in text
        and "| `✗······` FAIL 0 of 1 (1 wrong: forward) |" in text
    )
    assert "equals: alpha_ignored" in text and "minipeft verify -i keras --case 'lora.forward.usual'" in text
    assert text.count("### ") == 3
    assert "- x lora: required and not answered: grad" in report.markdown(
        RESULTS, ["x lora: required and not answered: grad"]
    )


def test_terminal(cases):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.matrix(RESULTS[:1] + RESULTS[3:4]))
    console.print(report.panel(findings(RESULTS[-1:])[0], cases["lora.forward.usual"]))
    text = console.export_text()
    assert "PASS (reading) 1 of 1" in text and "err/(u·cond) = 1e+09" in text and "W' = W + s B A" in text
    assert "1 case fails" in text and "https://github.com/adapter-hub/adapters/issues/760" in text


def test_one_mistake_is_one_finding():
    """Thirteen failures of one cause are told once, the others by their ids; what is undiagnosed by check and tensor; errors by word."""
    many = [Result("x", "1", f"lora.{check}.{v}", "FAIL", "y", diagnosis=("alpha_undivided", "merged_twice"))
            for check in ("delta", "forward", "grad", "merge") for v in ("rslora=True", "usual", "zzz")]  # fmt: skip
    other = Result("x", "1", "lora.train.sgd", "FAIL", "B", diagnosis=("merged_twice", "alpha_undivided"))
    odd = [Result("x", "1", f"lora.load.{v}", "FAIL", "y", reason=v) for v in ("plain", "pattern")]
    broken = [Result("x", "1", f"dora.{c}.usual", "ERROR", reason="boom") for c in ("grad", "merge")]
    known = Result("x", "1", "dora.init.usual", "FAIL", "A", diagnosis=("alpha_undivided",), expected_outcome="FAIL")
    results = [*many, other, *odd, *broken, known]
    found = findings(results)
    assert [(len(f.results), f.cause, f.first.id, f.known) for f in found] == [
        (13, "alpha_undivided", "lora.forward.usual", False), (2, "", "lora.load.pattern", False),
        (2, "", "dora.grad.usual", False), (1, "alpha_undivided", "dora.init.usual", True),
    ]  # fmt: skip
    line = (
        "13 cases fail by one cause: the scale is α, not α/r (as in mlx-vlm #841, #845; rasbt/LLMs-from-scratch #821)"
    )
    assert found[0].headline == line and "https://github.com/Blaizzy/mlx-vlm/issues/841" in found[0].addresses
    assert "2 cases fail alike: y of load is undiagnosed" in found[1].headline and "boom" in found[2].headline
    for text in (report.markdown(results), report.junit(results), report.field(results)):
        assert line in text
    assert "lora.merge.{usual,rslora=True,zzz}" in report.markdown(results)
    told = ElementTree.fromstring(report.junit(results)).findall("testsuite/testcase/failure")
    assert [t.text.startswith("the scale is α") for t in told].count(True) == 2  # once each, unknown and known
    assert page.html(results, {}, {}).count(f"x 1: {line}") == 1


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
    outside = ("https://example.org/", "https://github.com/adapter-hub/adapters/issues/")
    assert all(v.startswith(("#", *outside)) for v in tags.links), tags.links
    assert "alert('x')" not in text and "&lt;script&gt;" in text
    assert all(word in text for word in ("alpha_ignored", "lora.py", "W&#x27; = W + s B A", "its reading is grad=full"))
    anchors = [v[1:] for v in tags.links if v.startswith("#")]
    assert anchors and all(f'id="{a}"' in text for a in anchors)
