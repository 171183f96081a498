"""What reaches a terminal or a pipe: 80 columns, colours only where they are wanted, nothing raw from files."""

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.cells import cell_len
from sampled import in_turn

from minipeft.cli.terminal import Kept, cell, plain, progress
from minipeft.conformance import report
from minipeft.conformance.laws import LAWS
from minipeft.conformance.results import Result

ROOT = Path(__file__).parents[2]
PEFT_CASES = ROOT / "tests" / "data" / "peft" / "llama"
REPLAYED = ["replay", PEFT_CASES / "lora-modules-to-save", PEFT_CASES / "no-such-case", "--base", PEFT_CASES / "base"]
COMMANDS = [["list"], ["check", "ia3"], REPLAYED, ["verify", "ia3", "lora"], ["show", "adalora"],
            ["verify", "diff", "minipeft", "minipeft", "--case", "lora.grad.usual"]]  # fmt: skip


def too_wide(text, width=80):
    prose = [line for line in text.splitlines() if not line.startswith((">>>", "...")) and "/" not in line]
    return [line for line in prose if cell_len(line) > width]


@pytest.mark.parametrize("words", in_turn(COMMANDS, every=2), ids=lambda w: " ".join(map(str, w[:2])))
def test_a_pipe_is_80_columns_wide_and_has_no_codes(call, monkeypatch, words):
    monkeypatch.delenv("COLUMNS", raising=False)
    _, out, err = call(*words)
    assert out and not too_wide(out) and "\x1b" not in out + err


def test_a_line_a_method(call):
    from minipeft.method import METHODS

    _, out, _ = call("list")
    first = [line.split()[0] for line in out.splitlines()[2:] if line.strip()]
    assert set(METHODS) <= set(first) and len(first) == len(set(first))


def on_a_terminal(words, columns=80, **env):
    """What a command writes to a terminal of so many columns, standard error included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    full = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    full |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"} | env
    command = [sys.executable, "-m", "minipeft", *map(str, words)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=full)
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 65536):
            seen += data
    except OSError:  # the other end is closed
        pass
    process.wait()
    os.close(ours)
    return seen.decode()


CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.mark.parametrize(
    "words", in_turn([["check", "ia3", "--family", "llama"], REPLAYED], every=2), ids=lambda w: w[0]
)
def test_a_terminal_of_80_columns(words):
    seen = on_a_terminal(words)
    assert "\x1b[" in seen  # a bar, colours
    assert not too_wide(CODES.sub("", seen).replace("\r", "\n"))


@pytest.mark.wide
@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=str)
def test_no_colours_where_none_are_wanted(env):
    seen = on_a_terminal(["check", "ia3", "--family", "llama"], **env)
    assert f"{len(LAWS)} hold" in seen and not re.search(r"\x1b\[[0-9;]*m", seen)
    if "TERM" in env:
        assert "\x1b" not in seen


def test_text_of_others_is_never_raw(call, tmp_path):
    odd = tmp_path / "\x1b[31m[bold]case"
    shutil.copytree(PEFT_CASES / "lora", odd)
    (odd / "adapter" / "adapter_config.json").write_text('{"peft_type": "\\u001b[2J[red]x"}')
    _, out, err = call("replay", odd, "--base", PEFT_CASES / "base")
    assert "\x1b" not in out + err and "\\x1b[31m[bold]case" in out
    _, out, _ = call("replay", odd, "--base", PEFT_CASES / "base", "--json", "-")
    assert json.loads(out)[0]["case"] == odd.name


def test_plain():
    assert plain("a\tb\nc\x1b[0m\x7f\x9b\u202e\ud800\u2028é≤表") == "a b c\\x1b[0m\\x7f\\x9b\\u202e\\ud800\\u2028é≤表"
    assert cell("[red]x[/]") == "\\[red]x\\[/]"


def test_a_matrix_of_many_implementations_comes_in_blocks():
    from rich.console import Console

    results = [Result(f"implementation-{i}", "1", "lora.forward.usual", "PASS") for i in range(9)]
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.matrix(results, 80))
    text = console.export_text()
    assert not too_wide(text) and all(f"implementation-{i}" in text for i in range(9)) and text.count("lora") == 5


def test_progress_in_a_pipe_says_each_result_and_what_takes_long(capsys, monkeypatch):
    with progress("checking", 3) as tick:
        tick.doing("a\x1b")
        tick("a\x1b", "10 hold")
        tick("b")
        tick.said_at -= 5  # as if five seconds had passed
        tick.over.wait(0.3)
        tick("c", "bro\nken")
    out, err = capsys.readouterr()
    lines = [re.sub(r", \d+ s", "", line) for line in err.splitlines()]
    assert out == "" and lines == [
        "checking a\\x1b: 10 hold (1 of 3)",
        "checking b (2 of 3)",
        "checking c: bro ken (3 of 3)",
    ]


def test_what_takes_no_time_says_nothing(capsys):
    with progress("merging") as tick:
        tick.doing("reading")
    assert capsys.readouterr() == ("", "")


def test_what_was_interrupted_is_kept():
    kept = Kept()
    with kept:
        kept.append(1)
        raise KeyboardInterrupt
    assert kept == [1]
    with pytest.raises(KeyboardInterrupt):
        kept.finish()
    with pytest.raises(ValueError), kept:
        raise ValueError
    Kept().finish()


def test_a_reader_that_has_enough(started):
    process = started("list", "--json", "-")
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0


def test_a_terminal_that_has_not_the_characters(started):
    process = started("show", "lora", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    out, err = process.communicate()
    assert process.returncode == 0 and b"\\u221a" in out and err == b""
