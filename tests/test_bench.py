"""The benchmark: it runs, counts what it says, and needs the other side only when asked to."""

import json

import pytest

from minipeft import bench as job
from minipeft.cli import main
from minipeft.errors import Bad


@pytest.mark.parametrize("method", job.METHODS)
def test_our_step_learns(method):
    step = job.our_step("S", method)
    losses = [step() for _ in range(4)]
    assert losses[-1] < losses[0]


def test_a_step_over_a_base_in_bfloat16():
    half, single = job.our_step("S", "lora", dtype="bfloat16"), job.our_step("S", "lora")
    losses = [half() for _ in range(3)]
    assert losses[-1] < losses[0] and losses[0] != single()
    assert job.our_model("S", "bfloat16").digest() == job.our_model("S").astype("bfloat16").digest()


def test_alone(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "lora", "--size", "S", "--rounds", "1", "--json", str(tmp_path / "out.json")])
    assert ended.value.code == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["ours_ms"] > 0 and 0 < row["share"] < 1 and "time_ratio" not in row


@pytest.mark.parametrize("task", ["forward", "generate"])
def test_other_tasks(task):
    (row,) = job.bench(None, ["S"], ["lora"], 1, 2, None, [task])
    assert row["method"] == "base" and row["ours_ms"] > 0
    assert ("share" in row) != ("ours_tokens_s" in row)


def test_a_size_can_be_changed():
    assert job.settings("M,t=512,b=1,r=4") == job.SIZES["M"] | dict(t=512, b=1, r=4)
    with pytest.raises(Bad, match="expected one of S, M"):
        job.settings("N")


def test_profile_accounts_for_the_step_and_leaves_the_ops_alone():
    from minipeft.engine import ops

    before = ops.linear_lowrank, ops.Tensor.__add__
    rows = job.profile("S", "lora", steps=2)
    assert {("linear_lowrank", "forward"), ("linear_lowrank", "backward"), ("AdamW", "update")} <= {
        (r["op"], r["way"]) for r in rows
    }
    assert abs(sum(r["share"] for r in rows) - 1) < 1e-9
    assert ops.linear_lowrank is before[0]
    assert type(ops.Tensor.__add__).__name__ == "function"


def test_sweep_draws(tmp_path, monkeypatch):
    """What is measured, a process each, other tests see; here what becomes of the numbers."""
    asked = []

    def measured(task, method, size, *rest):
        asked.append(size)
        return dict(task=task, method=method, size=size, ours_ms=len(asked), ours_peak=1e6)

    monkeypatch.setattr(job, "_measure", measured)
    rows = job.sweep(None, tmp_path, 1, 2, None)
    assert asked[:2] == ["M,t=64,b=1", "M,t=128,b=1"] and asked[-1] == "M,r=64"
    assert len(rows) == len(job.LENGTHS) + len(job.RANKS) and {p.name for p in tmp_path.iterdir()} == {
        "speed.json",
        "speed_length.png",
        "speed_rank.png",
    }


def test_flops_by_hand():
    """S: 512 tokens; 2 layers of 4 d² + 12 d² weights, scores and mix 2 t d; the head; twice for the input gradients."""
    assert job.flops("S") == 2 * 2 * 512 * (2 * (16 * 64 * 64 + 2 * 64 * 64) + 64 * 128)


def test_a_side_that_fails_says_why():
    with pytest.raises(Bad, match="bench: ours S nothing failed"):
        job._Worker("ours", "S", "nothing", 1)


@pytest.mark.hf
@pytest.mark.parametrize(
    ("method", "task"), [("ia3", "step"), ("houlsby", "step"), ("lora", "forward"), ("lora", "generate")]
)
def test_the_other_side_runs(method, task):
    (row,) = job.bench("peft", ["S"], [method], 1, 2, None, [task])
    assert row["time_ratio"] > 0


@pytest.mark.hf
def test_against_peft():
    (row,) = job.bench("peft", ["S"], ["lora"], 1, 2, None)
    assert row["time_ratio"] > 0 and row["memory_ratio"] > 0
