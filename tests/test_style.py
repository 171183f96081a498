"""The linter, the formatter and the type checker find nothing; the core needs three libraries; files keep to themselves."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "minipeft").rglob("*.py"))
LAZY = {
    "typer",
    "rich",
    "tokenizers",
    "matplotlib",
    "cupy",
    "cupyx",
    "mpi4py",
    "torch",
    "peft",
    "transformers",
    "psutil",
}


@pytest.mark.parametrize(
    "words", ["ruff check .", "ruff format --check .", pytest.param("mypy", marks=pytest.mark.slow)]
)
def test_tools_find_nothing(words):
    done = subprocess.run([sys.executable, "-m", *words.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def imports(path):
    """(module, whether at the top of the file) of every import."""
    return list(_imports(path))


def _imports(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tops = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in tops
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in tops


def test_optional_libraries_are_imported_where_they_are_used():
    for path in FILES:
        lazy = LAZY - ({"typer"} if path.parent.name == "cli" else set())  # which begins by asking for it
        lazy = set() if "skeletons" in path.parts else lazy  # programs of their own
        assert not {m for m, top in imports(path) if top and m.split(".")[0] in lazy}, path


@pytest.mark.parametrize(
    ("part", "may_use"),
    [
        ("engine", {"engine", "errors"}),
        ("model", {"engine", "errors", "model", "settings", "shown"}),
        (
            "checkpoints",
            {
                "checkpoints",
                "engine",
                "errors",
                "model",
                "method",
                "methods",
                "quantize",
                "adapted",
                "arrays",
                "attaching",
                "drawing",
                "limits",
                "merging",
                "settings",
                "shown",
                "targets",
                "text",
            },
        ),
        ("methods", {"declare", "engine", "method", "methods", "model", "quantize", "torch_random"}),
    ],
)
def test_data_flows_one_way(part, may_use):
    for path in (ROOT / "minipeft" / part).rglob("*.py"):
        used = {m.split(".")[1] for m, _ in imports(path) if m.startswith("minipeft.")}
        assert used <= may_use, f"{path.name} uses {sorted(used - may_use)}"


def test_no_method_imports_more_than_its_parent():
    for path in (ROOT / "minipeft" / "methods").rglob("*.py"):
        siblings = [m for m, _ in imports(path) if m.startswith("minipeft.methods.")]
        assert len(siblings) <= 1, f"{path.name}: {siblings}"


def test_nothing_is_left_undone():
    words = re.compile(r"\b(TODO|FIXME|XXX|raise NotImplementedError)\b")
    for path in [*FILES, *(ROOT / "examples").glob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        assert not words.search(path.read_text(encoding="utf-8")), path


def test_no_pickle_anywhere():
    for path in FILES:
        assert not {"pickle", "marshal", "shelve", "dill"} & {m.split(".")[0] for m, _ in imports(path)}, path


def test_test_files_have_names_of_their_own():
    """pytest imports them by their names alone."""
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}
