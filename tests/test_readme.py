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


FEW = "text,label,split\n" + "".join(f"text {i},{'ab'[i % 2]},{'test' if i % 4 else 'train'}\n" for i in range(24))
QUICK = {"train": ["--data", "few.csv"], "check": ["--family", "llama"], "verify": ["--case", "*.forward.*"]}


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.wide)], ids=["quick", "pasted"])
def test_its_lines_run_one_after_the_other(quick, tmp_path, monkeypatch, capsys):
    """What is below "On the command line", pasted; two steps of training stand for more. Quick: on a part of their data."""
    block = README.split("On the command line")[1].split("```sh\n")[1].split("```")[0]
    block += README.split("Who computes what it says?")[1].split("```sh\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "few.csv").write_text(FEW)
    lines = [line.partition("#") for line in block.splitlines() if line.strip()]
    assert len(lines) >= 8
    for line, _, remark in lines:
        some = slice(3 if quick else None)
        words = [w for word in line.split()[1:] for w in (sorted(glob.glob(word))[some] if "*" in word else [word])]
        less = {"train": ["--steps", "2"], "bench": ["--help"]}.get(words[0], [])  # bench: tests/cli/test_help.py
        if quick and "new" not in words and "--require" not in words:
            less = less + QUICK.get(words[0], [])
        with pytest.raises(SystemExit) as ended:
            main([*words, *less])
        shown = capsys.readouterr()
        assert ended.value.code == 0, (line, shown.err)
        assert all(verdict in shown.out for verdict in re.findall(r"PASS \d+ of \d+", remark)), (line, remark)


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
