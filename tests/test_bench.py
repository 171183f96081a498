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
    (row,) = job.bench(job.plan(None, ["S"], ["lora"], 1, tasks=[task]))
    assert row["method"] == "base" and row["ours_ms"] > 0
    assert ("share" in row) != ("ours_tokens_s" in row)


def test_a_size_can_be_changed():
    assert job.settings("M,t=512,b=1,r=4") == job.SIZES["M"] | dict(t=512, b=1, r=4)
    with pytest.raises(Bad, match="expected one of S, M"):
        job.settings("N")


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


def measured(task, method, size, plan):
    """In place of a measurement, a process each, which other tests see."""
    return dict(task=task, method=method, size=size, against=plan.against, ours_ms=12.5, ours_peak=1e6, share=0.5)


def test_sweep_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "_measure", measured)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--sweep", str(tmp_path), "--json", "-"])
    assert ended.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["size"] for r in rows][:2] == ["M,t=64,b=1", "M,t=128,b=1"] and rows[-1]["size"] == "M,r=64"
    assert len(rows) == len(job.LENGTHS) + len(job.RANKS) and json.loads((tmp_path / "speed.json").read_text()) == rows
    assert {p.name for p in tmp_path.iterdir()} == {"speed.json", "speed_length.png", "speed_rank.png"}


@pytest.mark.parametrize("flag", ["--sweep plots", "--profile"])
def test_what_would_not_be_honoured_is_refused(flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["bench", *flag.split(), "--task", "forward"])
    assert ended.value.code == 2 and "--task beside it has no meaning" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_was_measured_is_kept_when_it_is_interrupted(tmp_path, monkeypatch, capsys):
    """A line for each row as it is there; then the table, the file and the plots of those."""

    def until_ctrl_c(task, method, size, plan):
        if size == "M,t=512,b=1":
            said = capsys.readouterr().err
            assert "10 measurements, 7 turns of ours each: roughly" in said
            assert "measuring step lora M,t=256,b=1: ours 12.5 ms, 1 MB (3 of 10" in said
            raise KeyboardInterrupt
        return measured(task, method, size, plan)

    monkeypatch.setattr(job, "_measure", until_ctrl_c)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--sweep", str(tmp_path), "--json", str(tmp_path / "all.json")])
    assert ended.value.code == 130 and "M,t=256,b=1" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "all.json").read_text())) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"all.json", "speed.json", "speed_length.png"}


def test_a_profile_is_kept_when_it_is_interrupted(monkeypatch, capsys):
    real = job.our_step

    def three_steps(*given, **how):
        step, left = real(*given, **how), iter(range(3))

        def limited():
            if next(left, None) is None:
                raise KeyboardInterrupt
            return step()

        return limited

    monkeypatch.setattr(job, "our_step", three_steps)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "lora", "--size", "S", "--profile"])
    assert ended.value.code == 130 and "linear_lowrank" in capsys.readouterr().out


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

    monkeypatch.setattr(job, "_Worker", Worker)
    monkeypatch.setattr(job, "find_spec", lambda package: package)
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


def test_the_other_side_is_looked_for_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(job, "find_spec", lambda package: None if package == "peft" else package)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--against", "peft"])
    assert (
        ended.value.code == 2 and capsys.readouterr().err == "minipeft: the other side needs peft: pip install peft\n"
    )


def test_the_table_fits_80_columns(monkeypatch, capsys):
    wide = dict(task="generate", method="base", size="GPT2", against="peft", failed=dict(compiled="x"))
    for side in ("ours", "peft"):
        wide |= {f"{side}_ms": 12345.6, f"{side}_peak": 9.87e10, f"{side}_tokens_s": 12345.0}
    wide |= dict(time_ratio=12.34, memory_ratio=12.34)
    long = dict(wide, task="step", method="prefix_tuning", size="M,t=2048,b=1", share=0.5)
    monkeypatch.setattr(job, "_measure", lambda task, method, size, plan: long if size == "S" else wide)
    with pytest.raises(SystemExit):
        main(["bench", "lora", "--size", "S", "--size", "M"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "\x1b" not in out
    for text in (
        "12345.6",
        "98700",
        "12345 /s",
        "12.34",
        "PEFT",
        "failed",
        "generate",
        "prefix_tuning",
        "M,t=2048,b=1",
    ):
        assert text in out


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
    (row,) = job.bench(job.plan("peft", ["S"], [method], 1, tasks=[task]))
    assert row["time_ratio"] > 0


@pytest.mark.hf
def test_against_peft():
    (row,) = job.bench(job.plan("peft", ["S"], ["lora"], 1))
    assert row["time_ratio"] > 0 and row["memory_ratio"] > 0


def test_settings_of_a_method(capsys):
    """They reach the process that measures: a step at rank 16 on the queries alone starts where one made by hand does."""
    given = {"lora": dict(r=16, targets="q_proj"), "ia3": {}}
    asked = job.plan(None, ["S"], ["lora"], 1, given=given)
    (row,) = job.bench(asked)
    assert row["set"] == given["lora"] and row["ours_ms"] > 0
    by_hand = job.our_step("S", "lora", given=given["lora"])
    usual = job.our_step("S", "lora")
    assert [by_hand() for _ in range(2)][1] != [usual() for _ in range(2)][1]
    for refused in (dict(against="peft"), dict(tasks=["forward"])):
        with pytest.raises(Bad, match=r"are of our method in a step alone|the other side needs"):
            job.plan(**(dict(against=None, sizes=["S"], methods=["lora"], given=given) | refused))
    with pytest.raises(SystemExit):
        main(["bench", "lora", "--size", "S", "--set", "rr=3"])
    assert "did you mean r" in capsys.readouterr().err
