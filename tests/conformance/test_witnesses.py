"""Every witness belongs to a method, is written apart from it, and gives what the recorded cases want."""

import ast
from pathlib import Path

import numpy as np
import pytest

from minipeft.conformance import cases as files
from minipeft.conformance import witnesses
from minipeft.conformance.own import method_of
from minipeft.conformance.witnesses import closed_form
from minipeft.method import METHODS, load_methods

load_methods()
FOLDER = Path(witnesses.__file__).parent
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_"))


def test_a_file_has_the_name_of_its_method():
    assert set(NAMES) <= METHODS.keys()
    assert closed_form("no_such_method") is None


@pytest.mark.parametrize("name", NAMES)
def test_it_is_written_apart(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    used = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    used |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    allowed = {"__future__", "math", "typing", "numpy", "scipy.special", "minipeft.conformance.acting"}
    assert all(m in allowed or m.startswith(witnesses.__name__) for m in used), used


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_what_is_wanted(name):
    found = [c for c in files.load(methods=[name], checks=["forward"]) if "keep" not in c.inputs]
    assert found
    for case in found:
        got = closed_form(name)(method_of(case), case.named("input", "base", "array", "stored"))
        assert got.keys() == case.want.keys()
        for k, want in case.want.items():
            bound = case.k * np.finfo(np.float64).eps * case.cond[k]
            assert (abs(got[k] - want) <= bound).all(), (case.id, k)
