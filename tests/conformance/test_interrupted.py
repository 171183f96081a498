"""Ctrl-C, or being told to end, while others are judged: what there is is shown, within a second, and nobody is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sampled import in_turn

from minipeft.conformance import verify

SLOW = """
import os, subprocess, sys, time
from minipeft.conformance.own import Own

open(os.environ["PIDS"], "a").write(f"{os.getpid()}\\n")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=False)
open(os.environ["PIDS"], "a").write(f"{child.pid}\\n")

class Slow(Own):
    def forward(self, case):
        if case.method == "loha":
            open(os.environ["PIDS"] + ".slow", "a").close()
            time.sleep(600)
        return super().forward(case)

    def info(self):
        if os.environ.get("NEVER"):
            open(os.environ["PIDS"] + ".slow", "a").close()
            time.sleep(600)
        return super().info()
"""
SOON = 3.0  # a second, and a busy machine's delays
NAME = "python:slow_harness:Slow"
PACKAGE = Path(__file__).parents[2]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ended(tmp_path, words, number=signal.SIGINT, **env):
    """Start a command, wait until it is in a slow place, send the signal: (status, seconds, output, errors)."""
    (tmp_path / "slow_harness.py").write_text(SLOW)
    pids, scratch = tmp_path / "pids", tmp_path / "scratch"
    scratch.mkdir()
    env = (
        os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE}", "PIDS": str(pids)} | env
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "minipeft", *words], cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not Path(f"{pids}.slow").exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.2)
    begun = time.perf_counter()
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    seconds = time.perf_counter() - begun
    time.sleep(0.1)
    left = [pid for pid in pids.read_text().split() if alive(pid)]
    assert left == [], (left, errors)
    assert len(pids.read_text().split()) >= 2  # the harness and its child were there
    assert not list(scratch.iterdir())
    return process.returncode, seconds, out, errors


@pytest.mark.parametrize("number, status", in_turn([(signal.SIGTERM, 143), (signal.SIGINT, 130)], every=2))
def test_what_was_judged_is_kept(number, status, tmp_path):
    words = ["verify", "ia3", "loha", "lora", "-i", NAME, "--jobs", "1", "--json", "r.json", "--html", "r.html"]
    code, seconds, out, errors = ended(tmp_path, [*words, "--markdown", "r.md", "--junit", "r.xml"], number)
    assert (code, seconds < SOON) == (status, True), (code, seconds, out, errors)
    results, whole = json.loads((tmp_path / "r.json").read_text()), len(verify.choose(methods=["ia3"]).cases)
    asked = [r for r in results if "interrupted" not in r["reason"]]
    assert {r["id"].split(".")[0] for r in results} == {"ia3", "loha"} and {r["outcome"] for r in asked} == {"PASS"}
    rest = [r for r in results if r not in asked]
    assert rest and {(r["outcome"], r["id"].split(".")[0]) for r in rest} == {("SKIP", "loha")}
    assert f"interrupted: {len(asked)} of" in out and f"PASS {whole} of {whole}" in out
    assert f"({len(rest)} not answered:" in " ".join(out.split())
    assert all((tmp_path / f"r.{end}").stat().st_size > 50 for end in ("html", "md", "xml"))
    assert f"{NAME} ia3: PASS {whole} of {whole} ({whole} of" in errors  # said in a pipe as it ended


@pytest.mark.parametrize(
    "words, env",
    [
        pytest.param(["verify", "-i", NAME], {"NEVER": "1"}, id="while it starts", marks=pytest.mark.wide),
        pytest.param(
            ["verify", "diff", "minipeft", NAME, "--case", "loha.forward.usual"], {}, id="diff", marks=pytest.mark.wide
        ),
        pytest.param(
            ["verify", "bisect", NAME, "--case", "loha.forward.usual"], {}, id="bisect", marks=pytest.mark.wide
        ),
    ],
)
def test_nobody_is_left_behind(words, env, tmp_path):
    code, seconds, out, errors = ended(tmp_path, words, **env)
    assert (code, seconds < SOON) == (130, True), (code, seconds, out, errors)
    assert "Traceback" not in errors and "interrupted" in errors


def test_a_side_of_the_benchmark_that_hangs(tmp_path):
    """In a pipe too it says at the start what it will do; a worker of its own is ended with it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if sys.argv[:1] == ['-m'] and 'minipeft.bench' in sys.orig_argv:\n"
        "    open(os.environ['PIDS'], 'a').write(f'{os.getpid()}\\n{os.getpid()}\\n')\n"
        "    open(os.environ['PIDS'] + '.slow', 'a').close()\n"
        "    time.sleep(600)\n"
    )
    code, seconds, _, errors = ended(tmp_path, ["bench", "lora", "--size", "S", "--rounds", "1", "--json", "b.json"])
    assert (code, seconds < SOON) == (130, True), (code, seconds, errors)
    assert "1 measurement, 1 turn of ours each: roughly" in errors
    assert json.loads((tmp_path / "b.json").read_text()) == []
