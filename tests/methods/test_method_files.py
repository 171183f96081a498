"""A method is one readable file: how long it is, and what it may know of."""

import re
import statistics
from pathlib import Path

import pytest

import minipeft.methods

FILES = sorted(p for p in Path(*minipeft.methods.__path__).glob("*/*.py") if p.stem != "__init__")
LINES = {p.stem: len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}


def test_method_files_are_short():
    """Half of them are of 50 lines or fewer, none is beyond 120."""
    table = "\n".join(f"{n:5d}  {name}" for name, n in sorted(LINES.items(), key=lambda item: item[1]))
    print(f"\nlines  method\n{table}\nmedian {statistics.median(LINES.values()):g} of {len(LINES)} files")
    assert max(LINES.values()) <= 120 and statistics.median(LINES.values()) <= 50


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_method_file_knows_nothing_of_devices_storage_or_ranges(path):
    code = path.read_text(encoding="utf-8").split('"""', 2)[2]
    assert not re.search(r"minipeft\.engine\.fast|Bfloat16|bfloat16|to_host|to_device|widened|cupy|threading", code)
    assert "__post_init__" not in code or path.stem == "bitfit"  # whose targets follow from a setting
