"""What the sides give in turns; one that fails costs its own numbers."""

import json

import pytest

from minipeft import bench as job
from minipeft.bench import plans, sides
from minipeft.cli import main
from minipeft.errors import Bad


@pytest.mark.slow
@pytest.mark.parametrize("task", ["forward", "generate"])
def test_other_tasks(task):
    (row,) = job.bench(job.plan(None, ["S"], ["lora"], 1, tasks=[task]))
    assert row["method"] == "base" and row["ours_ms"] > 0
    assert ("share" in row) != ("ours_tokens_s" in row)


def test_a_side_that_fails_costs_its_own_numbers(monkeypatch, capsys):
    """One that cannot start, and one that dies in its second turn."""

    class Worker:
        def __init__(self, side, *rest):
            if side == "compiled":
                raise Bad("bench: compiled S lora failed: no compiler")
            self.side, self.times, self.about = side, [], dict(peak=2e6, gflops=100.0)

        def run(self, steps):
            self.times.append(0.01)
            if self.side == "peft" and len(self.times) == 2:
                raise Bad("bench: peft S lora failed: it ended with status -9")

        def stop(self):
            self.times = None

    monkeypatch.setattr(sides, "Worker", Worker)
    monkeypatch.setattr(plans, "find_spec", lambda package: package)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "lora", "--size", "S", "--against", "peft", "--compile", "--json", "-"])
    shown = capsys.readouterr()
    (row,) = json.loads(shown.out)
    assert ended.value.code == 1 and row["ours_ms"] == 10 and "peft_ms" not in row and "time_ratio" not in row
    assert row["failed"]["peft"].endswith("status -9") and row["failed"]["compiled"].endswith("no compiler")
    assert (
        "torch + PEFT failed; torch.compile failed" in shown.err
        or "torch.compile failed; torch + PEFT failed" in shown.err
    )
    assert "1 measurement, 7 turns of ours and torch + PEFT and torch.compile each: roughly" in shown.err
