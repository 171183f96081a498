"""What was released keeps its bytes: the list, and what recording may do to a folder."""

import dataclasses
import json
import shutil

import pytest

from minipeft.conformance import cases as files
from minipeft.conformance import record
from minipeft.conformance.cases import Damaged
from minipeft.conformance.record import kept, released
from minipeft.errors import Bad

METHODS = ("c3a", "deft", "ia3")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Three methods' cases as this machine makes them, all released."""
    made = tmp_path_factory.mktemp("recorded") / "cases"
    assert record.into(made, METHODS).total == len(record.release(made))
    return made


@pytest.fixture
def folder(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "cases")


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def altered(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_released_cases_are_as_they_were():
    """The committed bytes of every case on the list; one that is not on it is not released yet."""
    assert released.faults() == []
    assert len(released.read()) > 1500


@pytest.mark.parametrize("name", ["in.safetensors", "want.safetensors", "case.json", "adapter/adapter_config.json"])
def test_any_altered_file_is_seen(folder, name):
    altered(folder / "ia3/load/plain" / name)
    assert released.faults(folder) == ["ia3.load.plain: released, and was altered"]


def test_what_is_missing_or_more_is_seen(folder):
    shutil.rmtree(folder / "c3a/grad/usual")
    (folder / "c3a/delta/usual/more.txt").write_text("")
    assert released.faults(folder) == [
        "c3a.delta.usual: released, and was altered",
        "c3a.grad.usual: released, and is missing",
    ]


def test_the_tiny_tier_is_released_too(folder):
    text = (folder / "tiny.json").read_text().replace('"K": 8.0', '"K": 9.0', 1)
    (folder / "tiny.json").write_text(text)
    assert released.faults(folder) == [f"{released.tiny_rows(folder)[0]['id']}: released, and was altered"]


def test_releasing_appends_alone(folder):
    lines = (folder / released.NAME).read_text().splitlines()
    (folder / released.NAME).write_text("\n".join(lines[:3] + lines[4:]) + "\n")
    assert released.faults(folder) == [] and record.release(folder, ["ia3"]) == []
    assert record.release(folder) == [lines[3].split()[0]] and record.release(folder) == []
    assert (folder / released.NAME).read_text().splitlines() == lines
    altered(folder / "ia3/load/plain/case.json")
    (folder / released.NAME).write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(Bad, match=r"^.*case\.json|^ia3\.load\.plain: released, and was altered"):
        record.release(folder)
    assert (folder / released.NAME).read_text().splitlines() == lines[1:]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a.b.c\n", "expected ID DIGEST"),
        (f"a.b.c {'0' * 63}\n", "expected ID DIGEST"),
        (f"b.b.c {'0' * 64}\na.b.c {'0' * 64}\n", "expected ids sorted, each once"),
        (f"a.b.c {'0' * 64}\na.b.c {'1' * 64}\n", "expected ids sorted, each once"),
    ],
)
def test_a_list_that_is_none_is_refused(folder, lines, said):
    (folder / released.NAME).write_text(lines)
    with pytest.raises(Damaged, match=said):
        released.faults(folder)


# --- what recording one method does to a folder -----------------------------------------------------------------------


def test_recording_one_method_again_touches_nothing(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    done = record.into(folder, ["c3a"])
    assert (done.new, done.changed, done.gone) == ([], [], []) and str(done).endswith("all as they were")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_what_is_missing_comes_back_with_its_rows(folder):
    """A method's cases and rows gone, recording brings the same bytes; all else keeps its own."""
    whole = everything(folder)
    shutil.rmtree(folder / "c3a")
    rows = [r for r in json.loads(whole["index.json"])["cases"] if not r["id"].startswith("c3a.")]
    (folder / "index.json").write_bytes(files.listing(rows)["index.json"])
    few = [row for row in released.tiny_rows(folder) if row["method"] != "ia3"]
    (folder / "tiny.json").write_bytes(kept.tiny_text(few))
    done = record.into(folder, ["c3a", "ia3"])
    assert {released.of(i) for i in done.new} == {"c3a", "ia3"} and not done.changed and not done.gone
    assert {i for i in done.new if released.of(i) == "ia3"} == {"tiny.ia3.forward.plain", "tiny.ia3.grad.plain"}
    assert everything(folder) == whole


def changed(folder, **how):
    """c3a's cases as they lie there, one of them changed, and its few."""
    made = list(files.load(folder, ["c3a"]))
    one = next(c for c in made if c.id == "c3a.forward.usual")
    more = dict(recorded={}, **how)
    return [dataclasses.replace(c, **more) if c is one else c for c in made]


def test_a_released_case_is_not_changed(folder):
    before = everything(folder)
    for wrong in (
        changed(folder, want={"y": 1 + files.read(folder / "c3a/forward/usual").want["y"]}),
        changed(folder)[1:],
    ):
        with pytest.raises(
            Bad, match=r"^c3a\.\w+\.\w+ is released and would (change|go): give it a new variant, or say why"
        ):
            kept.write(wrong, folder)
        assert everything(folder) == before


def test_it_is_changed_for_a_reason_that_is_kept(folder):
    before = everything(folder)
    y = files.read(folder / "c3a/forward/usual").want["y"]
    kept.write(changed(folder, want={"y": y + 1}), folder, correct="the sum\nwas  off by one")
    after = everything(folder)
    differ = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert differ == {"c3a/forward/usual/case.json", "c3a/forward/usual/want.safetensors", "index.json", released.NAME}
    assert released.read(folder)["c3a.forward.usual"].why == "the sum was off by one" and not released.faults(folder)
    rows = [before["index.json"], after["index.json"]]
    others = [[r for r in json.loads(text)["cases"] if r["id"] != "c3a.forward.usual"] for text in rows]
    assert others[0] == others[1] and sum(a != b for a, b in zip(*(t.splitlines() for t in rows))) == 1


def test_a_withdrawn_id_is_not_used_again(folder):
    some = [c for c in files.load(folder, ["c3a"]) if c.check != "train"]
    kept.write(some, folder, correct="the optimiser was another")
    assert not (folder / "c3a/train").exists() and not released.faults(folder)
    assert released.read(folder)["c3a.train.sgd"] == released.Entry(released.WITHDRAWN, "the optimiser was another")
    with pytest.raises(Bad, match=r"c3a\.train\.\w+: this id was withdrawn \(the optimiser was another\)"):
        record.into(folder, ["c3a"], correct="once more")
    shutil.copytree(files.SHIPPED / "c3a/train/sgd", folder / "c3a/train/sgd")
    assert released.faults(folder) == ["c3a.train.sgd: released, and was withdrawn, and is there"]


def test_a_damaged_case_is_mended(folder):
    before = everything(folder)
    altered(folder / "c3a/forward/usual/want.safetensors")
    (folder / "c3a/grad/usual/in.safetensors").unlink()
    done = record.into(folder, ["c3a"])
    assert done.changed == ["c3a.forward.usual", "c3a.grad.usual"] and everything(folder) == before


def test_an_index_whose_rows_would_change_is_refused(folder):
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace('"id"', ' "id"', 1))
    with pytest.raises(Damaged, match="would not keep their bytes"):
        record.into(folder, ["c3a"])


def test_two_of_one_name_are_refused(folder):
    one = files.read(folder / "c3a/forward/usual")
    with pytest.raises(Bad, match=r"two cases are named c3a\.forward\.usual"):
        kept.write([one, one], folder)
    few = released.tiny_rows(folder)
    with pytest.raises(Bad, match=rf"two cases are named {few[0]['id']}"):
        kept.write([], folder, [few[0], few[0]], methods=["c3a"])
