"""What the README says is true."""

import doctest
import re
from pathlib import Path

from minipeft.conformance import docstrings
from minipeft.method import METHODS, load_methods

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_session_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted > 10 and outcome.failed == 0
    assert (tmp_path / "adapter" / "adapter.json").exists()


def test_its_table_is_the_registry():
    load_methods()
    rows = sorted((docstrings.facts(cls) for cls in METHODS.values()), key=lambda m: (m["family"], m["name"]))
    rows = [m for m in rows if m["file"].startswith("minipeft/methods/")]
    shown = README.split("<!-- minipeft list --markdown - -->")[1].split("<!-- end -->")[0]
    assert shown.strip() == docstrings.markdown(rows), (
        "paste the output of `minipeft list --markdown -` between the marks"
    )


def test_its_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "minipeft/data/README.md"]:
        for link in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
