"""The reproductions of docs/deviations.md hold, and every failure that is known has its section there."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from minipeft.conformance.expect import concerning, of_harness
from minipeft.conformance.field import ENVIRONMENTS
from minipeft.conformance.program import PEERS
from minipeft.conformance.verify import choose

PAGE = (Path(__file__).parents[1] / "docs" / "deviations.md").read_text(encoding="utf-8")
SECTIONS = {
    part.split("\n")[0]: re.findall(r"```python\n(.*?)```", part, re.S)
    for part in re.split(r"^## ", PAGE, flags=re.M)[1:]
}
LIBRARIES = {"mlx": "mlx_lm"}


def test_what_is_known_matches_a_case_and_is_told():
    cases = choose().cases
    for e in (e for name in sorted(PEERS) for e in of_harness(name)):
        assert concerning([e], cases), e.id
        assert e.url.startswith("https://") or e.url.removeprefix("deviations.md#") in SECTIONS, e.url
        assert e.reason


def test_every_harness_has_an_environment():
    assert sorted(p for e in ENVIRONMENTS.values() for p in e.peers) == sorted(PEERS)


def test_every_reproduction_is_short_and_asserts():
    blocks = [b for blocks in SECTIONS.values() for b in blocks]
    assert len(blocks) >= 14
    for block in blocks:
        lines = [line for line in block.splitlines() if line.strip()]
        assert len(lines) <= 22 and any(line.strip().startswith("assert ") for line in lines), block


@pytest.mark.hf
@pytest.mark.parametrize("section", [s for s, blocks in SECTIONS.items() if blocks])
def test_the_reproduction_holds(section, tmp_path):
    library = LIBRARIES.get(section.split("-")[0], section.split("-")[0])
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    for block in SECTIONS[section]:
        (tmp_path / "reproduction.py").write_text(block, encoding="utf-8")
        done = subprocess.run([sys.executable, "reproduction.py"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
