"""Prose beside code: every line of a file is there, in order, and every declaration is told of."""

import inspect
from pathlib import Path

import pytest

from minipeft.method import METHODS, load_methods
from minipeft.site.annotated import parts

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_of_the_file_is_left_out(name):
    cls = METHODS[name]
    text = Path(inspect.getsourcefile(cls)).read_text(encoding="utf-8")
    after = text.split('"""', 2)[2]
    found = [line for part in parts(cls) for line in part.code.splitlines() if line.strip()]
    assert found == [line for line in after.splitlines() if line.strip()]
    assert all(part.prose for part in parts(cls))


def test_what_is_declared_is_told_beside_it():
    said = {part.prose: part.code for part in parts(METHODS["lora"])}
    (of_r,) = (prose for prose in said if prose.startswith("`r`"))
    assert "at least 1" in of_r and said[of_r].strip().startswith("r: int = count(8")
    (of_B,) = (prose for prose in said if "**B** (out, r)" in prose)
    assert of_B.startswith("Trained") and "B = trained(" in said[of_B]
