"""Where results go: files, or standard output, which then holds nothing else."""

import json

import pytest
from sampled import in_turn

from minipeft.cli.outputs import Outputs


def test_results_go_to_files_or_to_standard_output(tmp_path, capsys):
    outputs = Outputs(json=tmp_path / "new" / "a.json", html=None)
    outputs.show("said [red]\x1b")
    outputs.json({"a": [float("nan"), float("-inf"), "é"], 1: None})
    outputs.write("html", lambda: pytest.fail("nobody asked"))
    assert capsys.readouterr().out == "said [red]\\x1b\n"
    text = (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": ["nan", "-inf", "é"], "1": None}


@pytest.mark.parametrize(
    ("words", "begins"),
    in_turn(
        [
            (["list", "--json", "-"], "["),
            (["list", "--markdown", "-"], "| method"),
            (["tape", "ia3", "--json", "-"], "["),
            (["tape", "ia3", "--svg", "-"], "<svg"),
            (["tape", "ia3", "--html", "-"], "<!doctype html>"),
            (["check", "ia3", "--family", "llama", "--json", "-"], "{"),
            (["verify", "ia3", "--case", "ia3.forward.usual", "--json", "-"], "["),
            (["verify", "ia3", "--case", "ia3.forward.usual", "--html", "-"], "<!doctype html>"),
            (["verify", "ia3", "--case", "ia3.forward.usual", "--markdown", "-"], "| method"),
            (["verify", "ia3", "--case", "ia3.forward.usual", "--junit", "-"], "<?xml"),
        ],
        every=3,
    ),
    ids=lambda w: " ".join(w) if isinstance(w, list) else "",
)
def test_a_dash_is_standard_output_and_nothing_else_is_there(call, tmp_path, monkeypatch, words, begins):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call(*words)
    assert status == 0 and out.lower().startswith(begins) and not list(tmp_path.iterdir())
    if "--json" in words:
        json.loads(out)


def test_a_table_and_files_at_once(call, tmp_path):
    places = [w for end in ("json", "markdown") for w in (f"--{end}", tmp_path / end)]
    status, out, _ = call("list", *places)
    assert status == 0 and "lora" in out and {p.name for p in tmp_path.iterdir()} == {"json", "markdown"}
