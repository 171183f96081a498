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


def test_alone(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--size", "S", "--method", "lora", "--rounds", "1", "--json", str(tmp_path / "out.json")])
    assert ended.value.code == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["ours_ms"] > 0 and 0 < row["share"] < 1 and "time_ratio" not in row


def test_flops_by_hand():
    """S: 512 tokens; 2 layers of 4 d² + 12 d² weights, scores and mix 2 t d; the head; twice for the input gradients."""
    assert job.flops("S") == 2 * 2 * 512 * (2 * (16 * 64 * 64 + 2 * 64 * 64) + 64 * 128)


def test_a_side_that_fails_says_why():
    with pytest.raises(Bad, match="bench: ours S nothing failed"):
        job._Worker("ours", "S", "nothing", 1)


@pytest.mark.hf
def test_against_peft():
    (row,) = job.bench("peft", ["S"], ["lora"], 1, 2, None)
    assert row["time_ratio"] > 0 and row["memory_ratio"] > 0
