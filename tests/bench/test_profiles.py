"""Where a step goes."""

import pytest

from minipeft import bench as job
from minipeft.bench import profiles
from minipeft.cli import main


def test_profile_accounts_for_the_step_and_leaves_the_ops_alone():
    from minipeft.engine import Tensor, ops

    before = ops.linear_lowrank, Tensor.__add__
    rows = job.profile("S", "lora", steps=2)
    assert {("linear_lowrank", "forward"), ("linear_lowrank", "backward"), ("AdamW", "update")} <= {
        (r["op"], r["way"]) for r in rows
    }
    assert abs(sum(r["share"] for r in rows) - 1) < 1e-9
    assert ops.linear_lowrank is before[0]
    assert type(Tensor.__add__).__name__ == "function"


def test_a_profile_is_kept_when_it_is_interrupted(monkeypatch, capsys):
    real = profiles.our_step

    def three_steps(*given, **how):
        step, left = real(*given, **how), iter(range(3))

        def limited():
            if next(left, None) is None:
                raise KeyboardInterrupt
            return step()

        return limited

    monkeypatch.setattr(profiles, "our_step", three_steps)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "lora", "--size", "S", "--profile"])
    assert ended.value.code == 130 and "linear_lowrank" in capsys.readouterr().out
