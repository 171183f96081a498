"""The command: it runs alone, refuses what has no meaning, and its table fits a terminal."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minipeft.bench import cores, plans, ranks, tables, turns
from minipeft.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.wide
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
    monkeypatch.setattr(turns, "_measure", lambda task, method, size, threads, plan: long if size == "S" else wide)
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals")
def test_a_row_is_told_when_it_is_measured_and_is_what_there_is_when_it_is_ended(tmp_path):
    """In a pipe; the second row would take hours."""
    code = (
        "import sys, time; from minipeft.bench import turns; from minipeft.cli import main\n"
        "row = lambda task, method, size, threads, plan: dict(task=task, method=method, size=size, ours_ms=1.5, ours_peak=2e6)\n"
        "turns._measure = lambda *a: row(*a) if a[2] == 'S' else time.sleep(9999)\n"
        "main(['bench', 'lora', '--size', 'S', '--size', 'M', '--json', sys.argv[1]])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code, str(tmp_path / "out.json")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert "2 measurements, 7 turns of ours each: roughly" in process.stderr.readline()
        assert process.stdout.readline().split() == ["step", "size", "side", "ms", "MB", "time", "memory", "rate"]
        assert process.stdout.readline().split() == ["lora", "S", "ours", "1.5", "2"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 143 and "ours over that side's" in out and err.endswith("minipeft: interrupted\n")
    assert [row["size"] for row in json.loads((tmp_path / "out.json").read_text())] == ["S"]


def test_workers_beside_one_process(capsys):
    ranks.main("2", 1, ["S,b=2,t=8:lora:1"])
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"S,b=2,t=8:lora:1, beside one process; [\d,]+ bytes a step", said[0])
    assert said[1::3] == ["workers", "computed twice"]
    for line in (*said[2:4], *said[5:]):
        assert re.fullmatch(r" +[\d.]+ +[\d.]+ ms( of the first thread)?, × [\d.]+ \(.*\)", line)


def test_workers_and_threads_in_one_command(capsys):
    """Every number of threads, shared out among workers; the table says both."""
    words = [
        "bench",
        "lora",
        "--size",
        "S,b=2,t=8",
        "--rounds",
        "1",
        "--threads",
        "2",
        "--threads",
        "4",
        "--workers",
        "2",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json", "-"])
    assert ended.value.code == 0
    two, four = json.loads(capsys.readouterr().out)
    assert (two["threads"], four["threads"], two["workers"]) == (2, 4, 2) and two["ours_peak"] > 0
    asked = plans.plan(None, ["S,b=2,t=8"], ["lora"], threads=(2, 4), workers=2)
    assert tables.heading(asked).split() == ["step", "size", "side", "threads", "ms", "MB", "time", "memory", "rate"]
    assert " 2 × 1 " in tables.lines(two, asked)[0] and " 2 × 2 " in tables.lines(four, asked)[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workers", "some"], "--workers some: expected a number from 1 to 1024, or auto"),
        (["--workers", "2", "--task", "forward"], "--workers 2: a step on the host is all that workers share"),
        (["--workers", "2", "--profile"], "--profile: --workers beside it has no meaning"),
    ],
)
def test_workers_that_cannot_be(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "lora", "--size", "S", *words])
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_ways_to_spend_cores(capsys):
    cores.main(["1", "1x1,2x1,1x2@blocks.EACH_FLOPS=0", "S,b=2,t=8:lora:1"])
    head, rule, *lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[3].strip() for line in lines] == ["1x1", "2x1", "1x2@blocks.EACH_FLOPS=0"]
    assert lines[0].endswith(" 1.00 |") and head.count("|") == rule.count("|") == lines[0].count("|")
