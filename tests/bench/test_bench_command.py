"""The command: it runs alone, refuses what has no meaning, and its table fits a terminal."""

import json

import pytest

from minipeft.bench import plans, turns
from minipeft.cli import main


def test_alone(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "lora", "--size", "S", "--rounds", "1", "--json", str(tmp_path / "out.json")])
    assert ended.value.code == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["ours_ms"] > 0 and 0 < row["share"] < 1 and "time_ratio" not in row


@pytest.mark.parametrize("flag", ["--sweep plots", "--profile"])
def test_what_would_not_be_honoured_is_refused(flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["bench", *flag.split(), "--task", "forward"])
    assert ended.value.code == 2 and "--task beside it has no meaning" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_other_side_is_looked_for_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(plans, "find_spec", lambda package: None if package == "peft" else package)
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
    monkeypatch.setattr(turns, "_measure", lambda task, method, size, plan: long if size == "S" else wide)
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
