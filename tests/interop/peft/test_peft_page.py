"""docs/peft.md is what is generated, names every tuner and field of PEFT, and what it says is so."""

import dataclasses
import json
import re
import shutil

import pytest

from minipeft.interop.peft import options, tuners
from minipeft.interop.peft.fields import COMMON, FLAG, among, plain, read, refused
from minipeft.interop.peft.options import page
from minipeft.interop.peft.page import has_peft
from minipeft.interop.peft.registry import peft_types, specs
from minipeft.interop.peft.spec import Spec
from minipeft.interop.peft.tuners import Tuner, Written, known_tuners, tuners_of_peft

PAGE = options.PAGE.read_text(encoding="utf-8")
RECORDED = sorted(options.TESTS.glob("data/peft/*/*/adapter/adapter_config.json"))


@pytest.fixture(scope="module")
def generated():
    return page()


def sections(text):
    """{tuner: its part of a page}."""
    return {part.split("\n")[0]: part for part in text.split("\n## ")[2:]}


def fields(part):
    """{field: its cells} of the first table of a part."""
    table = part.split("|---|---|---|---|\n")[1].split("\n\n")[0]
    rows = [re.split(r" \| ", line.strip("| ")) for line in table.strip().split("\n")]
    return {name.strip("`"): row[1:] for row in rows for name in row[0].split(", ")}


@pytest.mark.hf  # what it takes many seconds to generate
def test_the_page_is_the_one_that_is_generated(generated):
    assert generated == PAGE, "python -m minipeft.interop.peft.page"


@pytest.mark.hf  # what it takes many seconds to generate
def test_every_tuner_and_field_has_a_row(generated):
    parts = sections(generated)
    assert list(parts) == list(known_tuners()) and set(peft_types()) <= set(parts)
    for kind, known in peft_types().items():
        assert set(known) - set(COMMON) <= set(fields(parts[kind])), kind
        assert f"| [{kind}](#{kind.lower()}) |" in generated
    assert set(COMMON) == set(fields(generated.split("`PeftConfig`")[1]))


@pytest.mark.hf  # what it takes many seconds to generate
def test_a_tuner_that_is_not_read_has_dashes(generated):
    parts = sections(generated)
    for kind in set(parts) - set(peft_types()):
        found = fields(parts[kind])
        assert set(found) == set(known_tuners()[kind]) and found
        assert all(row == ["—"] * 3 for row in found.values()), kind


@pytest.mark.hf  # what it takes many seconds to generate
def test_what_is_replayed_is_what_is_recorded(generated):
    """Of every field as many adapters as have it otherwise than PEFT's default, and the first of them has."""
    counted = {}
    for file in RECORDED:
        config = json.loads(file.read_text(encoding="utf-8"))
        for name, field in peft_types()[config["peft_type"]].items():
            if name not in COMMON and config.get(name) not in (None, field.default):
                counted.setdefault((config["peft_type"], name), []).append("/".join(file.parts[-4:-2]))
    parts = sections(generated)
    assert len(counted) > 200
    for kind, known in peft_types().items():
        for name, row in fields(parts[kind]).items():
            if name in known:
                cases = counted.get((kind, name), [])
                first, _, more = row[2].partition(" and ")
                assert (first in cases) if cases else (row[2] == "—"), (kind, name)
                assert len(cases) <= 1 or int(more.split()[0]) == len(cases) - 1, (kind, name)


@pytest.mark.hf  # what it takes many seconds to generate
def test_what_is_read_has_its_settings_name_and_is_written(generated):
    """What is a setting of ours is named when it is read, and is written by that setting."""
    parts = sections(generated)
    for name, spec in specs().items():
        found = fields(parts[spec.peft_type])
        for ours, theirs in spec.settings.items():
            if spec.known[theirs].fate == "read":
                assert f"`{ours}`" in found[theirs][0], (name, theirs)
            assert found[theirs][1] != "—", (name, theirs)
        for theirs, ours in spec.patterns.items():
            assert f"`{ours}` by module" in found[theirs][1], (name, theirs)


def made(**of):
    """A tuner of one method that has a field of each fate."""
    known = dict(
        size=read(among(1, 2), 1), flag=read(FLAG, False), begun=plain("it began so", 0), odd=refused("it is odd")
    )
    spec = Spec("LORA", known, settings=dict(ours="size"))
    told = dict(methods={"mine": spec}, known={k: [("mine", f)] for k, f in known.items()})
    return Tuner(**(told | dict(recorded={}, again=(), written=()) | of))


def test_the_cells_follow_what_there_is():
    bare = {name: row for name, *row in options._cells(made(), ("size", "flag", "begun", "odd"))}
    assert bare == {
        "`size`": ["`ours`", "—", "—"],
        "`flag`": ["yes", "—", "—"],
        "`begun`": ["needless: it began so", "—", "—"],
        "`odd`": ["refused: it is odd", "—", "—"],
    }
    written = (
        Written("mine", "", dict(size=1, flag=False)),
        Written("mine", "`ours`", dict(size=2, flag=False)),
        Written("mine", "the base", dict(size=1, flag=False, begun=3)),
    )
    recorded = {"llama/a": dict(size=2), "gpt2/b": dict(size=1, flag=True), "t5/c": dict(flag=True)}
    full = made(written=written, recorded=recorded, again=(dict(flag=True),))
    cells = {name: row[1:] for name, *row in options._cells(full, ("size", "flag", "begun", "odd"))}
    assert cells == {
        "`size`": ["`ours`", "llama/a"],
        "`flag`": ["yes", "gpt2/b and 1 more (t5)"],
        "`begun`": ["the base", "—"],
        "`odd`": ["—", "—"],
    }


def test_a_constant_is_shown_unless_files_have_others():
    written = (Written("mine", "", dict(size=2)),)
    assert options._writing(made(written=written), "size") == "`2`"
    assert options._writing(made(written=written, again=(dict(size=2),)), "size") == "`2`"
    assert options._writing(made(written=written, again=(dict(size=3),)), "size") == "yes"
    assert options._writing(made(written=(Written("mine", "", dict(size=1)),)), "size") == "—"


def test_rows_of_the_same_cells_are_one():
    rows = list(options._rows([("`a`", "x"), ("`b`", "y"), ("`c`", "x")]))
    assert rows == ["| `a`, `c` | x |", "| `b` | y |"]
    long = list(options._rows([(f"`{'a' * 40}`", "x"), (f"`{'b' * 40}`", "x")]))
    assert len(long) == 2


@pytest.mark.wide
def test_another_folder_of_tests(tmp_path):
    """Without recorded adapters nothing is replayed; with one it is that one."""
    assert "llama/" not in page(None) and page(tmp_path / "none") == page(None)
    for name in ("base", "lora"):
        shutil.copytree(options.TESTS / "data/peft/llama" / name, tmp_path / "data/peft/llama" / name)
    found = fields(sections(page(tmp_path))["LORA"])
    assert found["r"][2] == found["target_modules"][2] == "llama/lora" and found["use_dora"][2] == "—"


def test_the_words_of_a_field_are_those_of_peft():
    """What a field of ours may be that PEFT has words for, in the SPECs, is among those recorded."""
    for kind, known in peft_types().items():
        for name, words in known_tuners()[kind].items():
            options_ = [o for o in known[name].kind.options if isinstance(o, str)]
            assert set(options_) <= set(words), (kind, name)


@pytest.mark.hf
def test_the_recorded_tuners_are_those_of_peft():
    assert has_peft()
    assert tuners_of_peft() == known_tuners(), "python -m minipeft.interop.peft.page"
    assert tuners.as_toml(tuners_of_peft()) == tuners.TUNERS.read_text(encoding="utf-8")


@pytest.mark.hf
def test_every_field_of_peft_is_on_the_page():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    parts = sections(PAGE)
    assert list(parts) == [kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
    for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        theirs = {f.name for f in dataclasses.fields(cls)}
        found = {name for name in fields(parts[kind.value]) if "." not in name}
        assert found == theirs - set(COMMON) and set(COMMON) <= theirs, kind.value
