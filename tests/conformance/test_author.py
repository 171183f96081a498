"""A new method from the files of another: what is written, what is refused, and the way from there to recorded cases."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minipeft.conformance import author, beside, docstrings, program, verify
from minipeft.conformance import cases as files
from minipeft.conformance.missing import MARK, PACKAGE, missing
from minipeft.conformance.results import Result
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods

load_methods()
SHIPPED = sorted(n for n, c in METHODS.items() if c.__module__.startswith("minipeft.methods."))


def test_no_method_of_the_package_lacks_anything():
    assert [str(m) for name in SHIPPED for m in missing(METHODS[name])] == []


def test_every_method_may_be_begun_from():
    """What is written compiles, is marked in every file, and has the model's declarations."""
    for name in SHIPPED:
        made = author.files(f"another_{name}_2", METHODS[name])
        for path, text in made.items():
            compile(text, path, "exec")
            assert MARK in text, path
        assert len(made) >= 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora", "there is a method lora, in minipeft/methods/lowrank/lora.py"),
        ("LoRA", "expected a name of small letters"),
        ("lo_ra", "there is a method lora"),
        ("2fast", "expected a name of small letters"),
        ("a__b", "expected a name of small letters"),
        ("class", "expected a name of small letters"),
        ("../mine", "expected a name of small letters"),
        ("general", "minipeft/conformance/mutants/general.py is there already"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name, said):
    with pytest.raises(Bad, match=re.escape(said)):
        author.files(name, METHODS["lora"])


def test_all_is_written_or_nothing(tmp_path, monkeypatch):
    tree = tmp_path / "top"
    written = author.write_bytes

    def full(path, data):
        if "mutants" in path.parts:
            raise Bad(f"{path}: cannot be written: the disk is full")
        written(path, data)

    shutil.copytree(PACKAGE / "interop/peft", tree / "minipeft/interop/peft")
    before = sorted(tree.rglob("*"))
    monkeypatch.setattr(author, "write_bytes", full)
    with pytest.raises(Bad, match="the disk is full"):
        author.new("mine", "loha", tree)
    assert sorted(p for p in tree.rglob("*") if p.is_file()) == [p for p in before if p.is_file()]


# --- the whole way, in a tree of its own ------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """The package, its files linked, with its own index of cases and an empty folder of tests."""
    top = tmp_path / "minipeft"
    for folder, below, names in os.walk(PACKAGE):
        below[:] = [n for n in below if n != "__pycache__" and (n != "cases" or Path(folder).name != "conformance")]
        there = top / Path(folder).relative_to(PACKAGE)
        there.mkdir(parents=True, exist_ok=True)
        for name in names:
            (there / name).symlink_to(Path(folder) / name)
    (top / "conformance/cases").mkdir()
    for name in ("index.json", "schema.json", "tiny.json", "released.txt"):
        shutil.copy(files.SHIPPED / name, top / "conformance/cases" / name)
    (tmp_path / "tests").mkdir()
    return tmp_path


def run(tree, *words):
    env = os.environ | {"PYTHONPATH": str(tree), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "minipeft", *words], cwd=tree, env=env, capture_output=True, text=True)
    assert all(len(line) <= 80 or "/" in line for line in done.stdout.splitlines())
    return done.returncode, done.stdout, done.stderr.replace(str(tree) + "/", "")


@pytest.mark.slow
def test_from_nothing_to_recorded_cases(tree):
    """Written, it runs and says what is missing; filled in, its cases are recorded and nothing else changes."""
    status, out, err = run(tree, "new", "method", "mine", "--like", "loha")
    made = [Path(line) for line in out.splitlines()[:-1]]
    assert status == 0 and len(made) == 5 and all(p.exists() for p in made), err
    status, out, err = run(tree, "check", "mine", "--family", "llama")
    assert status == 1 and "mine     9 hold" in out and "broken" not in out
    lacking = out.partition("still missing, of mine:\n")[2]
    for path in made:
        assert re.search(rf"^  {path.relative_to(tree)}:\d+: ", lacking, re.M), path
    assert "minipeft/conformance/cases/mine/: no cases are recorded: minipeft record mine" in lacking
    cases = tree / "minipeft/conformance/cases"
    before = {p: p.read_bytes() for p in cases.rglob("*") if p.is_file()}
    status, _, err = run(tree, "record", "mine")
    assert status == 2 and "methods/structured/mine.py:1: to be filled in before mine is recorded" in err
    assert {p: p.read_bytes() for p in cases.rglob("*") if p.is_file()} == before
    for path in made:
        path.write_text(path.read_text(encoding="utf-8").replace(MARK, "done"), encoding="utf-8")
    tree.joinpath("minipeft/interop/peft/mine.py").unlink()
    status, out, err = run(tree, "record", "mine")
    assert status == 0 and "new mine.forward.other_sizes" in out, err
    kept = {p: p.read_bytes() for p in cases.rglob("*") if p.is_file() and "mine" not in p.parts}
    assert kept.keys() == before.keys() and {p.name for p in kept if kept[p] != before[p]} == {
        "index.json",
        "tiny.json",
    }
    for name in ("index.json", "tiny.json"):  # nothing but whole rows is more
        assert set(before[cases / name].splitlines()) <= set(kept[cases / name].splitlines())
    assert run(tree, "check", "mine", "--family", "llama")[0] == 0
    assert run(tree, "new", "method", "mine", "--like", "lora")[0] == 2


# --- what is missing --------------------------------------------------------------------------------------------------


def test_an_example_that_gives_something_else_is_found(monkeypatch):
    cls = METHODS["ia3"]
    module = sys.modules[cls.__module__]
    monkeypatch.setattr(module, "__doc__", module.__doc__.replace("array([", "array([7., "))
    assert [m.what for m in missing(cls)] == ["the example of ia3 gives something else"]
    monkeypatch.setattr(module, "__doc__", module.__doc__.partition(">>>")[0])
    assert [m.what for m in missing(cls)] == ["its docstring has no example that can be checked by hand (>>>)"]


def test_files_and_pages_that_are_not_there_are_found(tmp_path):
    """In a project that has an index, a page and tests, and nothing of the method but its module."""
    for path in ("minipeft/conformance/cases/index.json", "README.md", "docs/mutants.md"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE.parent / path, tmp_path / path)
    (tmp_path / "tests/methods").mkdir(parents=True)
    (tmp_path / "docs/mutants.md").write_text("# nothing\n")
    rows = [
        r for r in (tmp_path / "README.md").read_text().splitlines() if "(minipeft/methods/structured/c3a.py)" not in r
    ]
    (tmp_path / "README.md").write_text("\n".join(rows))
    found = [m.path for m in missing(METHODS["c3a"], tmp_path)]
    assert found == [
        "minipeft/conformance/witnesses/c3a.py",
        "minipeft/conformance/mutants/c3a.py",
        "tests/methods/structured/test_c3a.py",
        "README.md",
        "docs/mutants.md",
    ]


def test_a_tuner_of_that_name_asks_for_its_file(monkeypatch, tmp_path):
    from minipeft.conformance import missing as job

    monkeypatch.setattr(job, "has", lambda cls: False)
    assert "minipeft/interop/peft/c3a.py: is not there, and PEFT has C3A" in map(str, missing(METHODS["c3a"]))


# --- beside a library -------------------------------------------------------------------------------------------------


def test_cases_beside_a_library_are_one_of_every_tensor():
    made = list(beside.cases_of(METHODS["lora"], dict(rslora=True)))
    assert {(c.ask, *c.want) for c in made} == {
        ("forward", "y"), *(("vjp", k) for k in "xAB"), ("merge", "W"), ("merge", "b")
    }  # fmt: skip
    assert len({c.id for c in made}) == len(made) == 12 and all(c.config["rslora"] for c in made)
    assert {c.inputs["W"].shape for c in made} == {(10, 14), (8, 12)}
    with pytest.raises(Bad, match="r must be"):
        list(beside.cases_of(METHODS["lora"], dict(r=0)))


def test_the_worst_of_two_sizes_is_told():
    made = [c for c in beside.cases_of(METHODS["lora"], {}) if c.ask == "forward"]
    told = [Result("x", "", c.id, o, ratio=r, reason="why") for c, o, r in zip(made, ("FAIL", "PASS"), (9.0, 2.0))]
    assert beside.rows(made, told) == [beside.Row("output y", 9.0, 8.0, "FAIL", "why")]
    told = [Result("x", "", c.id, "PASS", ratio=r) for c, r in zip(made, (1.0, 2.0))]
    assert beside.rows(made, told) == [beside.Row("output y", 2.0, 8.0, "PASS")]


def test_what_is_no_library_is_one_line(capsys):
    with pytest.raises(Bad, match=r"--against pfet: expected one of .*\(did you mean peft"):
        beside.beside(METHODS["lora"], {}, "pfet")


PRETENDING = """
from importlib.metadata import version
from minipeft.conformance.own import Own

class Pretending(Own):
    def info(self):
        version({asked!r})
        return super().info() | dict(name="it", methods=["dora"], readings=dict(dora=dict(grad="full")))
implementation = Pretending
"""


@pytest.fixture
def pretending(tmp_path, monkeypatch):
    """A library with a harness, which asks for a package of that name when it begins."""

    def made(asked="numpy"):
        (tmp_path / "it.py").write_text(PRETENDING.format(asked=asked))
        monkeypatch.setattr(beside, "PEERS", ("it",))
        monkeypatch.setattr(beside, "command_of", lambda *of: [*program.command_of("python:it:implementation")])
        monkeypatch.setattr(verify, "command_of", beside.command_of)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(beside.__file__).parents[2])]))

    return made


@pytest.mark.wide
def test_the_reading_of_a_library_is_taken_but_for_what_the_settings_say(pretending, monkeypatch):
    pretending()
    monkeypatch.setattr(beside, "of_harness", lambda name: [])
    seen = beside.beside(METHODS["dora"], {}, "it")
    assert seen.readings == {"grad": "full"} and {r.outcome for r in seen.rows} == {"READING"}
    with pytest.raises(Bad, match="with these settings: its reading is grad=full"):
        beside.beside(METHODS["dora"], dict(grad="detached"), "it")
    with pytest.raises(Bad, match="it: its harness has no lora; it has dora"):
        beside.beside(METHODS["lora"], {}, "it")


@pytest.mark.wide
def test_a_library_that_is_not_there(pretending):
    pretending("there-is-none-such")
    with pytest.raises(Bad, match="it: it is not installed here; --python PATH names an interpreter that has it"):
        beside.beside(METHODS["dora"], {}, "it")
    with pytest.raises(Bad, match="No package metadata was found for there-is-none-such"):
        beside.beside(METHODS["dora"], {}, "it", "python")


@pytest.mark.hf
def test_a_method_beside_peft():
    rows = beside.beside(METHODS["dora"], {}, "peft").rows
    assert {r.outcome for r in rows} == {"PASS"} and {"output y", "gradient of m", "merged W"} <= {
        r.quantity for r in rows
    }
    with pytest.raises(Bad, match="peft beside dora with these settings: its reading is grad=detached"):
        beside.beside(METHODS["dora"], dict(grad="full"), "peft")
    (wrong,) = [r for r in beside.beside(METHODS["c3a"], {}, "peft").rows if r.outcome != "PASS"]
    assert wrong.quantity == "gradient of x" and wrong.known == "deviations.md#peft-c3a-gradient"
    with pytest.raises(Bad, match=r"peft: its harness has no houlsby; it has .*lora"):
        beside.beside(METHODS["houlsby"], {}, "peft")


def test_a_page_that_is_not_in_form_is_missing(monkeypatch):
    monkeypatch.setattr(docstrings, "HEADINGS", ("Merges", "Positions", "Dropout"))
    assert any("has no Differs line" in m.what for m in missing(METHODS["ia3"]))
