"""Every mutant is killed by the check meant for it, and a failure is named after the mutant it equals."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from minipeft.conformance import cases as files
from minipeft.conformance import mutants
from minipeft.conformance.mutants import killing, surviving
from minipeft.conformance.own import Own
from minipeft.method import METHODS


@pytest.fixture(scope="module")
def every():
    return list(files.load())


@pytest.mark.parametrize("name", mutants.every())
def test_it_is_killed_by_the_check_meant_for_it(name, every):
    planted = mutants.every()[name]
    wrong = planted.make()
    meant = (c for c in every if c.check in planted.checks and planted.concerns(c))
    assert any(killing.result_of(wrong, c).outcome in ("FAIL", "ERROR") for c in meant)


def test_one_that_is_right_survives(every, monkeypatch):
    right = mutants.Mutant("right", "", mutants.named("lora"), ("forward",), "", mutants.Tensors)
    monkeypatch.setattr(mutants, "every", lambda: {"right": right})
    assert killing.survivors(killing.kill_matrix(every)) == ["right: meant for forward, failed nothing"]


def test_a_file_has_the_name_of_its_method():
    names = {p.stem for p in Path(mutants.__file__).parent.glob("*.py")}
    every = mutants.every()
    assert names - METHODS.keys() == {
        "__init__", "__main__", "altering", "diagnosing", "dropout", "general", "killing", "rewriting", "supposing", "surviving", "training",
        "virtual",
    }  # fmt: skip
    assert every["residual_forgotten"].where.words == "corda, lora_ga, pissa"  # two import the third's


def test_two_of_one_name_are_refused(monkeypatch):
    first, second = (type("twice", (Own,), {"planted": (("forward",), "", mutants.EVERY)}) for _ in range(2))
    monkeypatch.setattr(mutants, "planted", lambda module: (first, second))
    with pytest.raises(TypeError, match="two mutants are named twice"):
        mutants.every.__wrapped__()


@pytest.mark.parametrize("name", mutants.every())
def test_it_concerns_a_method(name):
    assert any(mutants.every()[name].where.holds(cls) for cls in METHODS.values())


@pytest.mark.parametrize(
    "name, case",
    [
        ("dora_scales_bias", "dora.forward.usual"),
        ("dora_norm_differentiated", "dora.grad.usual"),
        ("alpha_ignored", "lora.forward.usual"),
        ("rslora_ignored", "lora.forward.rslora=True"),
        ("unmerge_multiplies", "ia3.unmerge.usual"),
        ("keys_and_values_swapped", "prefix_tuning.forward.usual"),
    ],
)
def test_an_output_is_recognised(name, case, every):
    case = next(c for c in every if c.id == case)
    got = getattr(mutants.every()[name].make(), case.ask)(case)
    assert name in killing.equals(case, got)
    assert not killing.equals(case, getattr(Own(), case.ask)(case))
    assert not killing.equals(case, {k: v + np.float64(0.1) for k, v in got.items()})


def test_another_option_is_recognised(every):
    case = next(c for c in every if c.id == "oft.forward.usual")
    other = next(c for c in every if c.id == "oft.forward.cayley=exact")
    got = Own().forward(dataclasses.replace(case, config=other.config))
    assert "cayley=exact" in killing.equals(case, got)


@pytest.mark.slow
def test_the_page_of_the_kill_matrix_is_current(every):
    """All mutants on all cases, and all small errors; that each is killed as it is meant to be is tested above."""
    page = Path(__file__).parents[2] / "docs" / "mutants.md"
    text = page.read_text(encoding="utf-8")
    counts = surviving.markdown([surviving.survey(METHODS[name]) for name in sorted(files.methods_in())])
    assert text == killing.markdown(killing.kill_matrix(every)) + "\n" + counts
