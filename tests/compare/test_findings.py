"""Rows and sentences from made-up outcomes whose truth is known."""

from itertools import combinations

import numpy as np
import pytest
from made_up import SEEDS, outcomes

from minipeft.compare import Outcome, summarise
from minipeft.compare.statistics import estimate
from minipeft.compare.table import WIDTH, table


def test_what_is_better_worse_and_neither():
    found = summarise(outcomes(lora=-0.3, dora=-0.3002, oft=-0.2, ia3=0.0, vera=0.2))
    rows = {r.method: r for r in found.rows}
    assert [rows[n].better for n in ("lora", "dora", "oft", "ia3", "vera")] == [True, True, True, None, False]
    assert [sorted(g) for g in found.groups] == [["dora", "lora"]] and [r.method for r in found.rows][-2:] == [
        "vera",
        "majority",
    ]
    assert rows["lora"].gain.low < -0.3 < rows["lora"].gain.high and rows["lora"].family == "lowrank"
    better, worse, unclear, apart, *_ = found.sentences
    assert (
        better.startswith("Better than a classifier on the frozen model (") and "dora +" in better and "oft +" in better
    )
    assert "ia3" not in better and "vera" not in better
    assert worse.startswith("Worse than it by held-out loss; in points of accuracy: vera -")
    assert unclear == "Not to be told from it: ia3."
    assert apart in {f"Not to be told from one another: {a} and {b}. Every other two can." for a, b in (("dora", "lora"), ("lora", "dora"))}  # fmt: skip


def test_differences_are_of_the_same_examples():
    """Examples differ by far more than methods do: only their differences show it."""
    made = outcomes(lora=-0.05)
    found = {r.method: r for r in summarise(made).rows}
    d = np.stack([a.losses - b.losses for a, b in zip(made["lora"], made["frozen"])])
    assert found["lora"].gain == estimate(d) and found["lora"].better
    assert found["lora"].loss.half > 5 * found["lora"].gain.half


def test_rows_stay_where_a_method_fails():
    made = outcomes(lora=-0.3, ia3=-0.2)
    made["lora"][1] = Outcome("lora", 4, note="step 3: the loss is nan")
    made["bitfit"] = [Outcome("bitfit", s, note="targets match nothing: it has no biases") for s in SEEDS]
    found = summarise(made)
    rows = {r.method: r for r in found.rows}
    assert rows["bitfit"].loss is None and rows["bitfit"].note.startswith("targets match nothing")
    assert rows["lora"].seeds == (3, 5) and rows["lora"].note == "with seed 4: step 3: the loss is nan"
    assert {"bitfit failed: targets match nothing: it has no biases.", "lora failed in part: with seed 4: step 3: the loss is nan."} < set(found.sentences)  # fmt: skip
    assert "bitfit" in table(found.rows) and "it has no biases" in " ".join(table(found.rows).split())


def test_many_methods_are_judged_together():
    """Twelve methods that do not differ: of their 78 pairs one in twenty differs by chance, judged each for itself."""
    names = ["lora", "dora", "oft", "ia3", "vera", "loha", "pissa", "adalora", "houlsby", "pfeiffer", "poly", "shira"]
    made = outcomes(**dict.fromkeys(names, 0.0))
    pairs = combinations([*names, "frozen"], 2)
    p = [estimate(np.stack([a.losses - b.losses for a, b in zip(made[x], made[y])])).p for x, y in pairs]
    assert min(p) < 0.05
    found = summarise(made)
    assert [sorted(g) for g in found.groups] == [sorted(names)] and not any(r.better for r in found.rows)


def test_two_methods_are_held_against_each_other_on_the_seeds_that_both_have():
    """Seeds differ by far more than methods do."""
    made = outcomes(lora=-0.3, ia3=-0.2)
    for some in made.values():
        for o in some:
            o.losses = o.losses + 100 * o.seed
    made["lora"][0] = Outcome("lora", 3, note="why not")
    made["ia3"][1] = Outcome("ia3", 4, note="why not")
    found = summarise(made)
    rows = {r.method: r for r in found.rows}
    assert rows["lora"].gain.mean == pytest.approx(-0.3, abs=0.02) and rows["ia3"].gain.mean == pytest.approx(
        -0.2, abs=0.02
    )
    assert not found.groups and rows["lora"].better and rows["ia3"].better


def test_one_seed_says_so():
    made = outcomes(lora=-0.3, ia3=-0.2)
    assert not any("one seed" in s for s in summarise(made).sentences)
    one = {name: some[:1] for name, some in made.items()}
    assert any(s.startswith("There was one seed: such intervals are over other examples alone") for s in summarise(one).sentences)  # fmt: skip
    made["ia3"] = made["ia3"][:1]
    assert any(s.startswith("There was one seed of ia3: ") for s in summarise(made).sentences)


def test_without_the_frozen_classifier_nothing_is_claimed():
    made = outcomes(lora=-0.3)
    made["frozen"] = [Outcome("frozen", s, note="why not") for s in SEEDS]
    found = summarise(made)
    assert (
        found.sentences[0].startswith("The classifier on the frozen model has no numbers")
        and found.rows[0].gain is None
    )


@pytest.mark.parametrize("off, says", [(4.0, "it is what it was, bit for bit, with every method"), (4.001, "it is 4.0010 with lora")])  # fmt: skip
def test_that_the_text_loss_comes_back_is_measured(off, says):
    made = outcomes(lora=-0.3)
    for o in made["lora"]:
        o.text_off = off
    assert says in next(s for s in summarise(made).sentences if "plain text" in s)


def test_the_table_is_narrow():
    made = outcomes(trainable_tokens=-0.3, parallel_adapter=-0.2)
    for o in made["parallel_adapter"]:
        o.trained, o.step_seconds, o.peak_bytes, o.text_on = 123_456_789, 9.999, 10**11, 99.0
    assert all(len(line) <= WIDTH for line in table(summarise(made).rows).splitlines())
