"""Exported cases: the same bytes each time, whole or not at all, and all that the page speaks of."""

import hashlib
import json
import shutil
import time
import zipfile

import pytest

from minipeft.cli import main as command_line
from minipeft.conformance import cases, export
from minipeft.errors import Bad

ONE = dict(methods=["ia3"], checks=["forward", "load"])


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.zip", "folder"])
def test_every_kind_holds_the_same_files_and_the_same_bytes(name, tmp_path, monkeypatch):
    files = export.contents(**ONE)
    export.write(files, tmp_path / name)
    held = tmp_path / name
    if name != "folder":
        monkeypatch.setattr(time, "time", lambda: 2e9)
        export.write(export.contents(**ONE), tmp_path / f"again.{name}")
        assert (tmp_path / f"again.{name}").read_bytes() == held.read_bytes()
        shutil.unpack_archive(held, tmp_path / "unpacked")
        (held,) = (tmp_path / "unpacked").iterdir()
    listed = dict(line.split("  ")[::-1] for line in (held / "SHA256SUMS").read_text().splitlines())
    assert listed == {k: v for k, v in digests(held).items() if k != "SHA256SUMS"}
    assert (held / "format.md").read_text(encoding="utf-8").startswith("# The format of the recorded cases")
    loaded = {c.id: c.recorded for c in cases.load(held / "cases")}
    assert loaded == {c.id: c.recorded for c in cases.load(**ONE)} and len(loaded) > 6
    tiny = json.loads((held / "cases" / "tiny.json").read_text())
    assert {c["id"] for c in tiny["cases"]} == {"tiny.ia3.forward.plain"}


def test_what_is_there_is_written_over_only_when_told(tmp_path, capsys):
    archive, folder, mine = tmp_path / "a.zip", tmp_path / "folder", tmp_path / "mine"
    archive.write_text("precious")
    (mine / "cases").mkdir(parents=True)
    (mine / "thesis.tex").write_text("precious")
    words, files = ["ia3", "--check", "forward"], export.contents(methods=["ia3"], checks=["forward"])

    def run(*more):
        with pytest.raises(SystemExit) as ended:
            command_line(["cases", "export", *map(str, more)])
        return ended.value.code, *capsys.readouterr()

    assert run(archive, *words)[0] == 2 and archive.read_text() == "precious"
    assert run(archive, *words, "--force")[0] == 0 and zipfile.is_zipfile(archive)
    for force in (False, True):
        with pytest.raises(Bad, match=r"holds thesis\.tex, which is no part of an export"):
            export.write(files, mine, force)
    folder.mkdir()
    export.write(files, folder)
    with pytest.raises(Bad, match="--force"):
        export.write(files, folder)
    export.write(export.contents(methods=["lora"], checks=["forward"]), folder, force=True)
    assert {c.id.partition(".")[0] for c in cases.load(folder / "cases")} == {"lora"}
    for wrong in (["lroa"], ["ia3", "--check", "quantize"]):
        assert run(tmp_path / "b.zip", *wrong)[0] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "folder", "mine"]


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    files = export.contents(**ONE)
    (tmp_path / "file").write_text("")
    with pytest.raises(Bad, match="cannot be written"):
        export.write(files, tmp_path / "file" / "folder")
    monkeypatch.setattr(
        export, "place_folder", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(Bad, match="No space left"):
        export.write(files, tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_cases_that_were_changed_are_not_exported(tmp_path):
    export.write(export.contents(**ONE), tmp_path / "e")
    changed = next((tmp_path / "e").rglob("want.safetensors"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    with pytest.raises(cases.Damaged, match="digest"):
        export.contents(tmp_path / "e" / "cases")


@pytest.mark.slow
def test_all_cases_are_the_folder_of_the_package():
    every = export.contents().items()
    held = {k.removeprefix("cases/"): hashlib.sha256(v).hexdigest() for k, v in every if k.startswith("cases/")}
    assert held == digests(cases.SHIPPED)
