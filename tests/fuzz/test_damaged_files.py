"""Damaged files of every kind are refused in one line, read as if undamaged, or altered in a way that nothing tells. Nothing else."""

import signal
from collections import Counter

import pytest
from fuzzing import PAGE, SOUND, bounds, defects, drawn, hung, judged, put, run, table


@pytest.fixture
def alarmed():
    before = signal.signal(signal.SIGALRM, hung)
    yield
    signal.signal(signal.SIGALRM, before)


def told(found):
    return "\n".join(
        f"{len(ones)} × {what}: {ones[0][2]}: {'; '.join(ones[0][5])[:300]}" for what, ones in defects(found).items()
    )


@pytest.mark.parametrize("few", [80, pytest.param(300, marks=pytest.mark.wide)])
def test_some_files(few, alarmed):
    found = [judged(0, i) for i in range(few)]
    assert not told(found), told(found)
    outcomes = Counter(one[3] for one in found)
    assert set(outcomes) == set(SOUND) and outcomes["clear"] > few / 2
    assert {one[1] for one in found if one[3] == "altered"} <= {
        "base",
        "PEFT adapter",
        "CSV table",
        "expectations",
        "results",
        "tokenizer",
    }


def test_a_seed_draws_the_same_files():
    (a, files, told), (b, again, too) = drawn(3, 7), drawn(3, 7)
    assert a.name == b.name and told == too and files == again


def test_the_page_has_the_limits_and_a_table_of_the_same_kinds():
    page = PAGE.read_text(encoding="utf-8")
    assert put(page, "limits", bounds()) == page
    kinds = [line.split("|")[1] for line in table([]).splitlines() if line.startswith("|")]
    there = page.partition("<!-- outcomes -->")[2].partition("<!-- end of outcomes -->")[0]
    assert [line.split("|")[1] for line in there.splitlines() if line.startswith("|")][: len(kinds) - 2] == kinds[:-2]


@pytest.mark.slow
def test_a_hundred_thousand_files():
    found = run(100_000, seed=2)
    assert not told(found), told(found)
