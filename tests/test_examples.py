"""Every example runs and says what it claims."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sampled import in_turn

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


@pytest.mark.parametrize("path", in_turn(EXAMPLES, every=2), ids=lambda p: p.stem)
def test_it_runs(path, tmp_path):
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    few = ["4"] if path.stem.startswith("03") else []  # steps of training
    done = subprocess.run([sys.executable, path, *few], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "False" not in done.stdout and " fail " not in done.stdout
    assert not list(tmp_path.iterdir())


def test_they_are_numbered_without_gaps():
    assert [int(p.stem[:2]) for p in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))


def test_the_guide_shows_the_method_that_runs():
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    shown = guide.split("Here is a whole one")[1].split("```python\n")[1].split("```")[0]
    example = (ROOT / "examples" / "05_a_method_of_your_own.py").read_text(encoding="utf-8")
    squeezed = lambda text: [line for line in text.split("if __name__")[0].splitlines() if line.strip()]
    missing = [line for line in squeezed(shown) if line not in squeezed(example)]
    assert not missing
