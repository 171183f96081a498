"""What is measured of one method, that it repeats, and that it learns."""

import dataclasses
import os
import signal

import numpy as np
import pytest
from sampled import in_turn

from minipeft import compare as job
from minipeft.compare import outcomes as measuring
from minipeft.errors import Bad
from minipeft.method import METHODS, Method, is_weight, load_methods
from minipeft.methods.lowrank.lora import LoRA

load_methods()
SMALL = dict(steps=2, rows=8, length=12, held_out=40)


def numbers(outcome):
    """What must repeat: everything but times and peaks."""
    plain = {k: v for k, v in dataclasses.asdict(outcome).items() if k not in ("step_seconds", "peak_bytes")}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in plain.items()}


SOME = ["lora", "prompt_tuning", "eva", "full", "qlora", "adapter_fusion", "x_lora", "lora_ga"]


@pytest.mark.parametrize("name", in_turn(SOME, every=8))
def test_an_outcome(task, name):
    found = job.measure(task, name)
    assert found.trained > 0 and found.share > 0 and found.base_unchanged and not found.note
    assert found.optimiser_bytes >= 2 * 4 * found.trained and found.peak_bytes > 0 and found.file_bytes > found.trained
    assert len(found.curve) == 3 and np.isfinite(found.curve).all()
    assert found.losses.shape == found.right.shape == (40,) and np.isfinite(found.losses).all()
    assert (found.merge_error is None) == (not is_weight(METHODS[name]))
    assert found.merge_error is None or found.merge_error < 1e-4
    assert (found.text_off == found.text_before) == (name != "qlora")  # four bits change the base itself
    assert name not in ("lora", "full") or found.text_on != found.text_off
    assert numbers(found) == numbers(job.measure(task, name))


def test_full_is_all_of_the_base(task):
    assert job.measure(task, "full", with_peak=False).share == pytest.approx(
        100, abs=30
    )  # the tied or absent output head


def test_the_frozen_model_is_frozen(task):
    found = job.measure(task, "frozen")
    assert found.trained == 0 and found.base_unchanged and found.text_on == found.text_off == task.text_before
    assert found.optimiser_bytes == 2 * 4 * sum(task.model.params[k].size for k in job.head_of(task.model))


def test_the_majority_by_hand(task):
    uneven = dataclasses.replace(task, shares=(0.1, 0.6, 0.1, 0.2))
    found = job.measure(uneven, "majority")
    labels = task.labels
    assert np.array_equal(found.right, labels == 1)
    assert found.losses.mean() == pytest.approx(-np.mean(np.log(np.array(uneven.shares))[labels]))


@pytest.mark.wide
def test_it_learns():
    task = job.prepare(steps=40, rows=16, length=16, held_out=200)
    lora, frozen = (job.measure(task, name, with_peak=False) for name in ("lora", "frozen"))
    assert lora.losses.mean() < frozen.losses.mean() - 0.02 and np.mean(lora.curve[-5:]) < np.mean(lora.curve[:5]) - 0.2


@pytest.mark.parametrize("name, usual", in_turn([("lora", 1e-2), ("frozen", measuring.HEAD_LR)], every=2))
def test_a_rate_of_nothing_is_a_rate(task, name, usual):
    """0 trains nothing; without a rate it is the usual one."""
    still, asked = (job.measure(task, name, lr=lr, with_peak=False) for lr in (0.0, None))
    before = job.judged(job.start(task, LoRA()), task.test)[0]
    assert still.lr == 0 and np.array_equal(still.losses, before)
    assert asked.lr == usual and not np.array_equal(asked.losses, before)


def test_a_usual_rate_is_the_methods_own_or_its_parents():
    class Mine(METHODS["qlora"], register=False):
        pass

    rates = {name: job.usual_rate(METHODS[name]) for name in ("lora", "dora", "qlora", "full")}
    assert rates == dict(lora=1e-2, dora=1e-2, qlora=5e-3, full=1e-3) and job.usual_rate(Mine) == 5e-3


@pytest.mark.wide
def test_the_peak_is_that_of_the_widest_batch(task):
    """Wherever that batch stands."""
    wide = max(task.train, key=lambda b: b.input_ids.shape[1])
    narrow = dataclasses.replace(wide, input_ids=wide.input_ids[:, :3], attention_mask=wide.attention_mask[:, :3])
    peaks = [
        job.measure(dataclasses.replace(task, train=train, steps=2), "lora").peak_bytes
        for train in ((narrow, wide), (wide, narrow), (wide,), (narrow,))
    ]
    assert peaks[0] == pytest.approx(peaks[2], rel=0.02) and peaks[1] == pytest.approx(peaks[2], rel=0.02)
    assert peaks[3] < 0.7 * peaks[2]


def test_a_held_out_loss_that_is_not_finite_is_no_result(task, monkeypatch):
    monkeypatch.setattr(measuring, "judged", lambda *_: (np.array([1.0, np.nan]), np.array([True, False])))
    with pytest.raises(Bad, match="after 3 steps the held-out loss is not finite"):
        job.measure(task, "lora", with_peak=False)


def test_a_curve_leaves_penalties_out(task):
    """Zero rate, so that the same model gives every loss: with a penalty as without one."""
    curves = [job.measure(task, METHODS["adalora"](gamma=g), lr=0.0, with_peak=False).curve for g in (0.0, 100.0)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_settings_are_honoured(task):
    found = job.measure(task, LoRA(r=2, targets="q_proj"), with_peak=False)
    linears = [W.shape for k, W in task.model.params.items() if k.endswith("attn.q.weight")]
    assert found.trained == sum(2 * (out + in_) for out, in_ in linears)


def test_the_peak_is_of_the_widest_batch(task, monkeypatch):
    seen = []
    fit = measuring.fit
    monkeypatch.setattr(measuring, "fit", lambda a, b, **k: seen.append(b) or fit(a, b, **k))
    job.measure(task, "ia3")
    assert seen[0] == [task.widest] and seen[1] == task.train


@pytest.mark.wide
def test_processes_do_not_change_the_numbers(monkeypatch):
    """Two runs in two processes give what they give in this one."""
    seen = []
    found = job.compare(["ia3"], seeds=[0, 1], jobs=2, progress=seen.append, **SMALL)
    assert list(found) == ["majority", "frozen", "ia3"] and len(seen) == 6
    assert [o.seed for o in found["ia3"]] == [0, 1]
    for seed in (0, 1):
        here = job.measure(job.prepare(seed=seed, **SMALL), "ia3", seed=seed)
        assert numbers(here) == numbers(found["ia3"][seed])


@dataclasses.dataclass(frozen=True)
class Odd(Method, register=False):
    """Fails in its own way."""

    targets: str = "attn.q.weight"
    way: str = ""

    def weight(self, W):
        if self.way == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.way == "fails":
            raise ZeroDivisionError("by design")
        return W


def test_rows_stay_when_a_process_is_killed():
    found = job.compare([Odd(way="dies")], seeds=[0], jobs=1, **SMALL)
    assert "ended from outside" in found["odd"][0].note and not found["frozen"][0].note


@pytest.mark.parametrize("method, lr, says", [
    (Odd(way="fails"), None, "ZeroDivisionError: by design"), ("lora", 1e38, "AdamW: lr must be"), ("bitfit", None, "match nothing"),
])  # fmt: skip
def test_why_there_is_nothing(task, monkeypatch, method, lr, says):
    no_bias = {k: v for k, v in task.model.params.items() if not k.endswith("bias")}
    there = (
        dataclasses.replace(task, model=dataclasses.replace(task.model, params=no_bias)) if method == "bitfit" else task
    )
    monkeypatch.setattr(measuring, "_task", lambda seed: there)
    with np.errstate(all="ignore"):
        found = measuring._work(method, "it", 5, lr, False)
    assert says in found.note and (found.method, found.seed) == ("it", 5)


@pytest.mark.parametrize("names, seeds, says", [
    (["lora", "lora"], [0], "'lora' is named twice"), (["lroa"], [0], "did you mean lora"),
    (["lora"], [], "expected one or more"), (["lora"], [1, 1], "each once"),
])  # fmt: skip
def test_what_cannot_be_compared(names, seeds, says):
    with pytest.raises(Bad, match=says):
        job.compare(names, seeds=seeds, **SMALL)


def test_the_default_is_one_of_each_family():
    assert {name: measuring.family_of(name) for name in measuring.FAMILIES.values()} == {
        name: family for family, name in measuring.FAMILIES.items()
    }
    assert set(measuring.FAMILIES) == {measuring.family_of(name) for name in METHODS if METHODS[name].__module__.startswith("minipeft.methods.")}  # fmt: skip
