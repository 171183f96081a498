"""`minipeft record`: one method's cases, and the list of those released."""

import json
import shutil

import pytest

from minipeft.conformance import cases as files
from minipeft.conformance import record
from minipeft.conformance.record import released


@pytest.fixture
def folder(tmp_path):
    record.into(tmp_path / "cases", ["ia3"])
    return tmp_path / "cases"


def test_recording(call, folder):
    (few,) = [r["id"] for r in released.tiny_rows(folder) if "forward" in r["id"]]
    shutil.rmtree(folder / "ia3/grad/usual")
    status, out, _ = call("record", "IA3", "--cases", folder)
    assert status == 0 and out.splitlines()[0] == "new ia3.grad.usual" and out.endswith(" cases: 1 new\n")
    status, out, _ = call("record", "--release", "--cases", folder)
    assert status == 0 and few in out.splitlines() and "ia3.grad.usual" in out.splitlines()
    status, out, _ = call("record", "--release", "--cases", folder)
    assert status == 0 and out == f"{folder / 'released.txt'}: 0 more\n"


def test_a_released_case_is_kept(call, mistake, folder):
    record.release(folder)
    list_ = (folder / released.NAME).read_text()
    entries = [line.split() for line in list_.splitlines()]
    text = "".join(f"{i} {'0' * 64 if i == 'ia3.delta.usual' else d}\n" for i, d in entries)
    (folder / released.NAME).write_text(text)
    said = mistake("record", "ia3", "--cases", folder)
    assert "ia3.delta.usual is released and would change: give it a new variant, or say why it was wrong" in said
    status, out, _ = call("record", "ia3", "--cases", folder, "--correct", "it had no bias")
    assert status == 0 and released.read(folder)["ia3.delta.usual"].why == "it had no bias"


def test_mistakes(mistake, folder):
    assert "did you mean ia3" in mistake("record", "ia33", "--cases", folder)
    assert "expected one of them" in mistake("record", "--release", "--correct", "it", "--cases", folder)
    assert "no such" in mistake("record", "--release", "--cases", folder / "nowhere").lower()


def test_the_package_holds_the_list():
    rows = json.loads((files.SHIPPED / "index.json").read_text())["cases"]
    entries = released.read()
    assert sum(row["id"] in entries for row in rows) > 0.9 * len(entries)
