"""A side in its process: it is given what was asked for, and says why it fails."""

import pytest

from minipeft import bench as job
from minipeft.bench import sides
from minipeft.cli import main
from minipeft.errors import Bad


def test_a_side_that_fails_says_why():
    with pytest.raises(Bad, match="bench: ours S nothing failed"):
        sides.Worker("ours", "S", "nothing", 1)


@pytest.mark.hf
@pytest.mark.parametrize(
    ("method", "task"), [("ia3", "step"), ("houlsby", "step"), ("lora", "forward"), ("lora", "generate")]
)
def test_the_other_side_runs(method, task):
    (row,) = job.bench(job.plan("peft", ["S"], [method], 1, tasks=[task]))
    assert row["time_ratio"] > 0


@pytest.mark.hf
def test_against_peft():
    (row,) = job.bench(job.plan("peft", ["S"], ["lora"], 1))
    assert row["time_ratio"] > 0 and row["memory_ratio"] > 0


GIVEN = {"lora": dict(r=16, targets="q_proj"), "ia3": {}}


@pytest.mark.wide
def test_settings_reach_the_process_that_measures():
    (row,) = job.bench(job.plan(None, ["S"], ["lora"], 1, given=GIVEN))
    assert row["set"] == GIVEN["lora"] and row["ours_ms"] > 0


def test_settings_of_a_method(capsys):
    """A step at rank 16 on the queries alone is not the usual one; elsewhere they are refused."""
    given = GIVEN
    by_hand = job.our_step("S", "lora", given=given["lora"])
    usual = job.our_step("S", "lora")
    assert [by_hand() for _ in range(2)][1] != [usual() for _ in range(2)][1]
    for refused in (dict(against="peft"), dict(tasks=["forward"])):
        with pytest.raises(Bad, match=r"are of our method in a step alone|the other side needs"):
            job.plan(**(dict(against=None, sizes=["S"], methods=["lora"], given=given) | refused))
    with pytest.raises(SystemExit):
        main(["bench", "lora", "--size", "S", "--set", "rr=3"])
    assert "did you mean r" in capsys.readouterr().err
