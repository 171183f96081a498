"""`list`, `show` and `check`: what they print, and their exit codes."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minipeft.conformance.laws import LAWS
from minipeft.method import METHODS, load_methods

PEFT_CASES = Path(__file__).parents[1] / "data" / "peft" / "llama"


def test_list(call):
    status, out, _ = call("list", "--json", "-")
    found = json.loads(out)
    load_methods()
    assert status == 0 and {m["name"] for m in found} >= {"lora", "ia3", "prefix_tuning"}
    assert {m["family"] for m in found if m["file"].startswith("minipeft/")} == {
        "lowrank", "structured", "orthogonal", "selective", "bottleneck", "scaling", "prompt", "routing"
    }  # fmt: skip
    status, out, _ = call("list")
    assert status == 0 and all(name in out for name in METHODS)


def test_show(call):
    status, out, _ = call("show", "dora")
    assert status == 0 and "W' = diag(m / ‖V‖) V" in out and "dora.py" in out
    assert re.search(r"^    grad = 'detached' +detached or full \(a reading\)$", out, re.M)
    assert re.search(r"^    m_emb  \(d\) +trained  ‖E‖, column by column;", out, re.M)
    assert "Differs  The paper detaches" in out
    for name in ("change", "weight"):
        assert (
            f"{name} of dora\n    def {name}(self, *, A: Any" in out or f"{name} of dora\n    def {name}(self, W" in out
        )
    assert "[" not in out.split("change of dora")[0].replace("[0, 1)", "")  # no codes of rich
    status, out, _ = call("show", "dora", "--code")
    assert status == 0 and "class DoRA(LoRA)" in out


def test_show_has_what_a_method_inherits_and_what_its_letters_are(call):
    _, out, _ = call("show", "pissa")
    assert "change of pissa" in out and "weight of" not in out
    _, out, _ = call("show", "lora_plus")
    assert "change of lora\n" in out
    _, out, _ = call("show", "oft")
    assert "    p = beta (beta - 1) / 2\n" in out and "    Q      (K, p)  trained  0" in out


def test_every_method_is_shown(call):
    for name in METHODS:
        status, out, err = call("show", name)
        assert (
            status == 0
            and not err
            and " of " in out
            and all(len(line) <= 80 or "/" in line for line in out.splitlines())
        )


def test_version_and_help(call):
    assert call("--version")[1].startswith("minipeft 0.")
    for command in ["list", "show", "compare", "train", "merge", "combine", "convert", "replay", "check", "bench"]:
        status, out, _ = call(command, "--help")
        assert status == 0 and "Example" in out, command


def test_check(call):
    status, out, _ = call("check", "ia3", "--family", "llama", "--json", "-")
    verdicts = json.loads(out)["ia3"]
    assert status == 0 and {v["outcome"] for v in verdicts} == {"pass"} and len(verdicts) == len(LAWS)


def test_check_fails_with_1(call, monkeypatch):
    from minipeft.conformance import laws

    def broken(case):
        raise laws.Broken("planted")

    monkeypatch.setitem(laws.LAWS, "size", broken)
    status, out, _ = call("check", "ia3", "--family", "llama")
    assert status == 1 and "ia3, llama, size: planted" in out


def test_check_says_what_is_missing(call, monkeypatch):
    from minipeft.conformance import missing as job

    monkeypatch.setattr(job, "missing", lambda cls: [job.Missing("docs/it.md", "is not there")])
    status, out, _ = call("check", "ia3", "--family", "llama")
    assert status == 1 and out.endswith("still missing, of ia3:\n  docs/it.md: is not there\n")
    assert json.loads(call("check", "ia3", "--family", "llama", "--json", "-")[1])["ia3"][-1]["law"] == "files"


def test_check_against_a_library(call, mistake, monkeypatch):
    from minipeft.conformance import beside

    rows = [beside.Row("output y", 0.5, 8.0, "PASS"), beside.Row("gradient of l", 9.5, 8.0, "FAIL", "l is off by 0.1")]
    monkeypatch.setattr(beside, "beside", lambda *of: beside.Beside(rows, {"kind": "theirs"}))
    status, out, _ = call("check", "ia3", "--against", "peft")
    assert (
        status == 1
        and "gradient of l: l is off by 0.1" in out
        and "ia3, kind=theirs" in out
        and re.search(r"output y +0.5 +8 +PASS", out)
    )
    assert max(map(len, out.splitlines())) <= 80
    rows[1] = dataclasses.replace(rows[1], known="deviations.md#it")
    status, out, _ = call("check", "ia3", "--against", "peft")
    assert status == 0 and "FAIL (known)" in out and "l is off by 0.1 (deviations.md#it)" in out
    rows[:] = [beside.Row("output y", None, 8.0, "N/A", "its reading is another")]
    assert call("check", "ia3", "--against", "peft")[0] == 1
    assert "expected the methods to compare" in mistake("check", "--against", "peft")
    monkeypatch.undo()
    assert "--python nonesuch: expected a file" in mistake("check", "ia3", "--against", "peft", "--python", "nonesuch")
    assert "did you mean peft" in mistake("check", "ia3", "--against", "pfet")


def test_starting_is_cheap():
    """Neither the package nor the command line loads NumPy or SciPy before there is work for them."""
    code = "import sys, minipeft, minipeft.cli; print([m for m in ('numpy', 'scipy', 'rich.table', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["show", "DoRA"],
        ["verify", "IA3", "--case", "ia3.forward.usual"],
        ["check", "Ia-3", "--family", "llama"],
        ["tape", "IA3", "--set", "IA3.inputs=mlp.up.weight"],
    ],
    ids=" ".join,
)
def test_a_method_has_its_name_however_it_is_written(call, words):
    status, out, err = call(*words)
    assert status == 0 and re.search("dora|ia3", out), err


@pytest.mark.parametrize("words", ["show", "verify", "compare", "bench", "train", "tape", "check"])
def test_a_wrong_name_is_told_its_near_misses(mistake, words):
    assert "did you mean lora" in mistake(words, "lroa", *(["out"] if words == "train" else []))
