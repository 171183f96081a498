"""Planted mistakes are found, and most are named: one mistake is one finding, whose diagnosis says what it is."""

import dataclasses

import numpy as np
import pytest
from planted import FIRST, SECOND, answers
from rich.console import Console
from sampled import in_turn

from minipeft.conformance import cases as files
from minipeft.conformance import page, report
from minipeft.conformance.cases import Rejected, Unsupported
from minipeft.conformance.findings import findings
from minipeft.conformance.judge import judge
from minipeft.conformance.mutants import diagnosing, rewriting, supposing
from minipeft.conformance.mutants.diagnosing import Failure
from minipeft.conformance.results import Result
from minipeft.conformance.verify import diagnosed
from minipeft.engine import backend

NAMED = 25  # of thirty, at least
LATE: dict[str, str] = {}  # what no case asks for yet, and why
UNNAMED: dict[str, str] = {}  # of those that are found, and why


@pytest.fixture(autouse=True)
def by_the_text():
    """Functions have no replacements: an edit of the text would change nothing there."""
    before = backend._fast
    backend.use(fast=False)
    yield
    backend.use(fast=before)


def results(planted):
    """What the edited implementation is found to do, as `minipeft verify` judges a program."""
    cases = list(files.load(methods=[planted.method]))
    found, gave = [], {}
    for case, got in zip(cases, answers(planted, cases)):
        result = Result(
            "port", "1", case.id, "SKIP", dtype="float64", reason=str(got) if isinstance(got, Exception) else ""
        )
        if isinstance(got, Rejected):
            result = dataclasses.replace(result, outcome="PASS" if case.tolerance == "REJECT" else "FAIL")
        elif isinstance(got, Exception):
            result = dataclasses.replace(result, outcome="SKIP" if isinstance(got, Unsupported) else "ERROR")
        else:
            with np.errstate(all="ignore"):
                result = judge(case, got, result)
            if result.outcome == "FAIL" and case.tolerance != "SUBSPACE":
                gave[case.id] = Failure(case, got, result)
        found.append(result)
    return diagnosed(found, gave)


def is_named(planted):
    """None if nothing was found; whether the first finding says what it is."""
    found = findings(results(planted))
    return planted.names(found[0]) if found else None


def test_there_are_thirty_each_of_ten_kinds():
    for table in (FIRST, SECOND):
        assert len(table) == len({p.name for p in table}) == 30 and len({p.group for p in table}) >= 10
    assert not {p.name for p in FIRST} & {p.name for p in SECOND}
    assert LATE.keys() | UNNAMED.keys() <= {p.name for p in (*FIRST, *SECOND)}


QUICK = [p for p in (*FIRST, *SECOND) if p.method not in ("dora",) and p.name not in LATE.keys() | UNNAMED.keys()]


@pytest.mark.parametrize("planted", in_turn(QUICK, every=16), ids=lambda p: p.name)
def test_it_is_named(planted):
    assert is_named(planted)


@pytest.mark.hf
@pytest.mark.parametrize("table", [FIRST, SECOND], ids=["first", "second"])
def test_all_are_found_and_most_are_named(table):
    named = {p.name: is_named(p) for p in table}
    assert {name for name, was in named.items() if was is None} == {p.name for p in table} & LATE.keys()
    assert sum(was is True for was in named.values()) >= NAMED - len(named.keys() & LATE.keys())
    assert {name for name, was in named.items() if was is False} == {p.name for p in table} & UNNAMED.keys()


def test_one_mistake_is_one_finding():
    """Of a scale all checks tell; every report has one cause, the plainest failure first, and where it was seen."""
    found = results(FIRST[0])
    (only,) = findings(found)
    checks = {r.check for r in only.results}
    assert (
        only.cause == "alpha_undivided"
        and {"forward", "grad", "merge", "combine", "load", "train", "embedding"} <= checks
    )
    assert only.first.id == "lora.forward.usual" and only.seen
    line = f"{len(only.results)} cases fail by one cause: the scale is α, not α/r"
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.panel(only, None))
    texts = console.export_text(), report.markdown(found), page.html(found, {}, {})
    assert all(only.addresses[0] in text and "the scale is α, not α/r" in text for text in texts)
    assert all(text.count(line) == 1 for text in texts[1:])


def test_a_number_is_found_and_called_by_what_it_is():
    case = next(c for c in files.load(methods=["lora"], checks=["forward"]) if c.variant == "usual")
    t = case.tensors
    change = next(it for it in supposing.of_arrays(case) if it.words.startswith("the change is"))
    for number, name in ((3.0, "the scale"), (2.0, "2"), (1.2345, "1.2345"), (14**-0.5, "1/√inputs")):
        base = t["x"] @ t["W"].T + t["b"]
        found = supposing.solved(case, dict(y=base + number * (case.want["y"] - base)), change)
        assert found == pytest.approx(number, rel=1e-9)
        assert name in [said for said, _ in supposing.called(case, found)]
    assert supposing.solved(case, dict(y=case.want["y"][::-1]), change) is None


def test_the_text_is_as_it_was():
    """What is rewritten has its own code again, and computes what it did."""
    case = next(c for c in files.load(methods=["loha"], checks=["forward"]) if c.variant == "usual")
    before = [f.__code__ for f, _ in rewriting.run_for(case)]
    every = [it for _, it in rewriting.rewritten(case)]
    told = {it.words for it in every}
    assert (
        "X1 @ Y1 in place of X1 @ Y1 * (X2 @ Y2), in change" in told
        and "no gradient goes through X2 @ Y2, in change" in told
    )
    kept = [it for it in every if it.answer(case, it.neutral or 0.0) is not None]
    assert len(every) > len(kept) > 30
    assert [f.__code__ for f, _ in rewriting.run_for(case)] == before
    assert not any(rewriting.HELP in f.__globals__ for f, _ in rewriting.run_for(case))


@pytest.mark.wide
def test_what_nothing_explains_has_no_name():
    cases = list(files.load(methods=["loha"], checks=["forward"]))
    rng = np.random.default_rng(0)
    failures = []
    for c in cases:
        result = Result("port", "1", c.id, "FAIL", tensor="y")
        failures.append(Failure(c, {k: v + rng.standard_normal(v.shape) for k, v in c.want.items()}, result))
    assert [r.diagnosis for r in diagnosing.diagnosed(failures)] == [()] * len(cases)
