"""Verdicts say what was not asked, groups stand apart, and nothing passes that shows nothing."""

import json

import pytest

from minipeft.conformance import cases as files
from minipeft.conformance.groups import GROUP_OF, GROUPS, LETTERS, group_of
from minipeft.conformance.results import Result, from_lines, to_lines
from minipeft.conformance.verdicts import MARKS, lacking, marks, required, standing, state, verdict
from minipeft.errors import Bad


def results(**outcomes):
    """forward_usual="PASS" and so on, of LoRA."""
    return [Result("x", "1", f"lora.{k.replace('_', '.', 1)}", o, ratio=1.0) for k, o in outcomes.items()]


def test_every_check_belongs_to_one_group():
    assert {i.split(".")[1] for i in files.ids_in()} <= GROUP_OF.keys()
    assert sum(map(len, GROUPS.values())) == len(GROUP_OF)
    assert len({*LETTERS.values()}) == len(GROUPS) == 7 and len({m for m, _ in MARKS.values()}) == len(MARKS)
    with pytest.raises(Bad, match=r"check 'gard': expected one of .* \(did you mean grad"):
        group_of("gard")
    row = json.loads(to_lines(results(forward_usual="PASS")))[0] | dict(id="lora.gard.usual")
    with pytest.raises(Bad, match=r"result 1: .*check 'gard'"):
        from_lines(json.dumps([row]))


@pytest.mark.parametrize(
    "outcomes, said, shown",
    [
        (dict(forward_usual="PASS", grad_usual="PASS"), "PASS 2 of 2", "✓✓·····"),
        (dict(forward_usual="PASS", load_plain="SKIP", train_sgd="SKIP"), "PASS 1 of 3 (2 not answered: load, train)", "✓··○··○"),
        (dict(merge_usual="PASS", unmerge_usual="SKIP"), "PASS 1 of 2 (1 not answered: unmerge)", "··◐····"),
        (dict(forward_usual="FAIL", load_plain="ERROR", train_sgd="SKIP", grad_usual="N/A"),
         "FAIL 0 of 3 (1 wrong: forward; 1 error: load; 1 not answered: train)", "✗··!··○"),
        (dict(grad_a="ERROR", grad_b="ERROR"), "ERROR 0 of 2 (2 errors: grad)", "·!·····"),
        (dict(grad_usual="READING", forward_usual="PASS"), "PASS (reading) 2 of 2", "✓≈·····"),
        (dict(forward_usual="SKIP"), "SKIP 0 of 1 (1 not answered: forward)", "○······"),
    ],
)  # fmt: skip
def test_a_verdict_says_what_was_not_asked(outcomes, said, shown):
    found = results(**outcomes)
    assert (str(verdict(found)), marks(found)) == (said, shown)


def test_where_nothing_concerns_an_implementation():
    assert not verdict(results(grad_usual="N/A")).there and not verdict([]).there and state([]) == "N/A"
    gone = Result("x", "1", "lora.grad.usual", "SKIP", reason="this method is not there", absent=True)
    assert not verdict([gone]).there and from_lines(to_lines([gone])) == [gone]
    assert verdict([Result("x", "1", "lora.grad.usual", "SKIP", reason=gone.reason)]).there  # a program may say so too


def test_what_is_required():
    there = ["forward", "grad", "load", "merge", "unmerge"]
    assert required("forward, gradient,files,merge", there) == {
        "forward": ("forward",), "gradient": ("grad",), "files": ("load", "save"), "merge": ("merge",)
    }  # fmt: skip
    for words, line in (
        ("gard", r"--require gard: expected checks or groups, of .*\(did you mean grad"),
        ("fils", "did you mean files"), ("train", "none of the chosen cases is of it"), (" ,", "found none"),
    ):  # fmt: skip
        with pytest.raises(Bad, match=line):
            required(words, there)


def test_what_is_lacking():
    found = results(forward_usual="PASS", grad_usual="SKIP", load_plain="SKIP", load_missing="PASS", train_sgd="N/A")
    wanted = required("forward,grad,files,train", ["forward", "grad", "load", "train"])
    line = "x lora: required and not answered: grad (1), load (1), train (1)"
    assert lacking(found, wanted) == {"x": [line]}
    assert lacking(results(forward_usual="FAIL", grad_usual="N/A", grad_full="PASS"), wanted) == {}
    gone = [Result("x", "1", "dora.grad.usual", "SKIP", absent=True)]
    assert lacking(gone, wanted) == {} and lacking(gone, wanted, ["dora"])["x"][0].startswith("x dora: required")


def test_who_gives_back_what_it_was_given_passes_nothing():
    """Taking out what was never put in, and refusing every file, show nothing alone."""
    alone = [
        *results(unmerge_usual="PASS", merge_usual="SKIP", load_plain="ERROR"),
        Result("x", "1", "lora.load.missing", "PASS"),
    ]
    found = {r.id: r for r in standing(alone)}
    assert {found[f"lora.{i}"].outcome for i in ("unmerge.usual", "load.missing")} == {"SKIP"}
    assert found["lora.unmerge.usual"].reason == "it shows nothing: lora.merge.usual is not answered"
    for outcome in ("PASS", "FAIL"):
        beside = results(unmerge_usual="PASS", merge_usual=outcome)
        assert standing(beside) == beside
    unasked = results(unmerge_usual="PASS", load_pattern="PASS", load_plain="SKIP")
    assert standing(unasked) == unasked
