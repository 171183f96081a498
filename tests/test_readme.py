"""What the README says is true."""

import doctest
import glob
import re
import subprocess
from pathlib import Path

import pytest

from minipeft.cli import main
from minipeft.conformance import docstrings
from minipeft.method import METHODS, load_methods

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_session_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted > 10 and outcome.failed == 0
    assert (tmp_path / "adapter" / "adapter.json").exists()


def test_its_lines_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    """What is below "On the command line", pasted; two steps of training stand for more."""
    block = README.split("On the command line")[1].split("```sh\n")[1].split("```")[0]
    block += README.split("Who computes what it says?")[1].split("```sh\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    lines = [line.partition("#")[0] for line in block.splitlines() if line.strip()]
    assert len(lines) >= 8
    for line in lines:
        words = [w for word in line.split()[1:] for w in (sorted(glob.glob(word)) if "*" in word else [word])]
        less = {"train": ["--steps", "2"], "bench": ["--help"]}.get(words[0], [])  # bench: tests/cli/test_help.py
        with pytest.raises(SystemExit) as ended:
            main([*words, *less])
        assert ended.value.code == 0, (line, capsys.readouterr().err)


def test_what_it_leaves_behind_is_ignored():
    for name in (
        "compare.html",
        "out/adapter.json",
        "adapter/adapter.json",
        ".venv/bin/python",
        "minipeft.egg-info/PKG-INFO",
    ):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode in (0, 128), (
            name
        )  # 128: no git here


def test_the_line_of_the_tests_makes_its_environment():
    """.ci/run runs this line alone, in a clone without one."""
    (line,) = [line for line in README.splitlines() if "-m pytest" in line]
    assert "-m venv .venv" in line and "pip install -q -e '.[test]'" in line


def test_its_table_is_the_registry():
    load_methods()
    rows = sorted((docstrings.facts(cls) for cls in METHODS.values()), key=lambda m: (m["family"], m["name"]))
    rows = [m for m in rows if m["file"].startswith("minipeft/methods/")]
    shown = README.split("<!-- minipeft list --markdown - -->")[1].split("<!-- end -->")[0]
    assert shown.strip() == docstrings.markdown(rows), (
        "paste the output of `minipeft list --markdown -` between the marks"
    )


def test_its_links_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "minipeft/data/README.md"]
    for page in [*pages, *(ROOT / "docs/notebooks").glob("0*.py"), ROOT / "examples/exercises/README.md"]:
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
