"""Programs under test that are broken or hostile: every case is reported, every report is written, and nobody is left behind."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from sampled import in_turn

from minipeft.cli import main
from minipeft.conformance import cases, diff, expect, taking, verify
from minipeft.conformance.program import Broken, NotStarted, Program, _cause, _odd, command_of
from minipeft.conformance.results import Result, address, from_lines, to_lines
from minipeft.errors import Bad
from minipeft.processes import orphans_ended

HOSTILE = Path(__file__).with_name("hostile.py")
PASS = ("PASS", "")
MODES = {  # how each of some cases is answered, and what is said of it
    "crash": ("ERROR", "the process ended with status 7"),
    "closed": ("ERROR", "it closed its standard output and did not end"),
    "pipe": ("ERROR", "its output: expected a file, found a pipe"),
    "folder": ("ERROR", "its output: expected a file, found a folder"),
    "link": ("ERROR", "its output: expected a file, found a link"),
    "loop": ("ERROR", "its output: expected a file, found a link"),
    "sparse": ("ERROR", "its output: expected at most 16,777,216 bytes, found 1,099,511,627,776"),
    "header": ("ERROR", "whose header has at most 1,048,576 bytes"),
    "empty": ("FAIL", "y: expected shape (3, 4, 10), found (0,)"),
    "half": ("FAIL", "y: expected dtype float64, found float16"),
    "brain": ("ERROR", "its output: 'y' has dtype BF16; expected one of F64"),
    "huge": ("FAIL", "y: expected shape (3, 4, 10), found (1,)"),
    "number": ("FAIL", "y: expected shape (3, 4, 10), found ()"),
    "folded": ("ERROR", "its output: expected a safetensors file: "),
    "axes": ("ERROR", "its output: expected a safetensors file: "),
    "newline": ("FAIL", "y is missing; found y\n"),
    "nothing": ("ERROR", "its output: cannot be read: No such file"),
    "stray": ("ERROR", "expected one JSON object on a line, found '\"debug\"'"),
    "no id": ("ERROR", "expected the answer to have the id of its question, '{id}'; found none"),
    "other id": ("ERROR", "'{id}'; found 'another.forward.usual'"),
    "deep": ("ERROR", "expected one JSON object on a line, found '[[["),
    "nan": ("ERROR", "expected one JSON object on a line"),
    "digits": ("ERROR", "expected one JSON object on a line"),
    "endless": ("ERROR", "a line of more than 1,048,576 bytes on standard output"),
    "chatter": ("ERROR", "found none"),
    "noise": PASS,
    "vandal": ("ERROR", "its output: cannot be read: No such file"),
    "squatter": ("ERROR", "its output: cannot be read: Not a directory"),
    "litter": PASS,
    "half a character": ("ERROR", "\ufffd\x00\x1b[2J\u202e | <script> [bold] `a`"),
    "status": ("ERROR", "expected a status of done, unsupported, rejected, found ['done']"),
    "reason": ("ERROR", "expected an answer whose reason is a text, found {'a': 1}"),
    "link to code": ("SKIP", "rrr"),
    "daemons": ("ERROR", "the process ended with status 8"),
    "twice": PASS,  # and the next case is told the second answer
}


@pytest.fixture(scope="module")
def chosen():
    """Cases of a forward pass whose outputs are one y of one shape."""
    found = verify.choose(checks=["forward", "grad"])
    fits = [c for c in found.cases if c.want.keys() == {"y"} and c.want["y"].shape == (3, 4, 10)]
    return verify.Chosen(tuple(fits), {})


def hostile(tmp_path, modes, **more):
    """The name of a program that does so, `modes` being {id: mode}."""
    plan, pids = tmp_path / "plan.json", tmp_path / "pids"
    pids.touch()
    methods = json.loads((cases.SHIPPED / "index.json").read_text())["cases"]
    known = sorted({c["id"].split(".")[0] for c in methods})
    plan.write_text(json.dumps(dict(modes=modes, methods=known, pids=str(pids)) | more))
    return f"exec:{shlex.join([sys.executable, '-S', str(HOSTILE), str(plan)])}"


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def state(folder):
    """Everything that lies in a folder."""
    return {str(p): hashlib.sha256(p.read_bytes()).digest() for p in sorted(folder.rglob("*.*")) if p.is_file()}


@pytest.mark.wide
def test_every_case_is_reported_whatever_the_program_does(chosen, tmp_path, monkeypatch):
    """One case after another is answered in another way; those between them are right, and are said to be."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    assert len(chosen.cases) > len(MODES)
    plan = dict(zip([c.id for c in chosen.cases], MODES, strict=False))
    after_twice = chosen.cases[list(MODES).index("twice") + 1].id
    before, threads = state(cases.SHIPPED / "lora"), threading.active_count() + 1  # and one that judges
    with orphans_ended():
        found = verify.run(hostile(tmp_path, plan), chosen, jobs=1, limit=3.0)
    assert [r.id for r in found] == [c.id for c in chosen.cases]
    for r in found:
        outcome, reason = MODES[plan[r.id]] if r.id in plan else PASS
        if r.id == after_twice:
            outcome, reason = "ERROR", f"expected the answer to have the id of its question, '{r.id}'; found '"
        assert r.outcome == outcome and reason.replace("{id}", r.id) in r.reason, (plan.get(r.id), r)
        assert len(r.reason) <= 400 and not r.url
    assert state(cases.SHIPPED / "lora") == before
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2 and not [pid for pid in pids if alive(pid)]
    time.sleep(0.1)
    assert threading.active_count() <= threads
    assert not [p for p in (tmp_path / "scratch").iterdir() if p.is_dir()]


def test_a_hang_costs_its_case_and_ends_with_what_it_started(chosen, tmp_path):
    few = verify.Chosen(chosen.cases[:3], {})
    found = verify.run(hostile(tmp_path, {few.cases[1].id: "hang"}), few, limit=0.5)
    assert [r.outcome for r in found] == ["PASS", "ERROR", "PASS"] and found[1].reason == "no answer within 0.5 s"


UNFINISHED = {  # what a harness answers, the mark of each group, and what is said of it
    "later": ("SKIP 0 of 6", "○·○○···", "nothing was judged"),
    "refuses": ("FAIL 2 of 6", "✗·✗✗···", "rejected: I do not like it"),
    "echo": ("FAIL 1 of 6", "✗·✗✗···", "y is missing"),
    "nothing": ("FAIL 0 of 6", "!·!✗···", "its output: cannot be read"),
    "crash": ("ERROR 0 of 6", "!·!!···", "the process ended with status 7"),
    "hang": ("ERROR 0 of 6", "!·!!···", "no answer within 0.2 s"),
}


@pytest.mark.parametrize("mode", in_turn(UNFINISHED, every=3))
def test_an_unfinished_harness_does_not_pass(mode, tmp_path, capsys):
    """Nor where a right answer costs nothing: what is given back as it was given, a refusal of whatever comes."""
    ids = [
        f"lora.{i}"
        for i in ("forward.usual", "merge.usual", "unmerge.usual", "load.plain", "load.missing", "load.misshaped")
    ]
    name = hostile(tmp_path, dict.fromkeys(ids, mode))
    verdict, marks, said = UNFINISHED[mode]
    with pytest.raises(SystemExit) as ended:
        main(["verify", "-i", name, "--limit", "0.2", *(w for i in ids for w in ("--case", i))])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ended.value.code == 1 and f"{marks} {verdict} (" in out and said in out, out


def test_what_shows_nothing_is_no_pass(tmp_path):
    """Who answers nothing but what costs nothing has answered nothing."""
    chosen = verify.choose(ids=["lora.merge.usual", "lora.unmerge.usual", "lora.load.plain", "lora.load.missing"])
    modes = dict.fromkeys((c.id for c in chosen.cases), "later") | {
        "lora.unmerge.usual": "echo",
        "lora.load.missing": "refuses",
    }
    assert {r.outcome for r in verify.run(hostile(tmp_path, modes), chosen)} == {"SKIP"}


def test_a_harness_that_dies_as_it_starts(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["verify", "-i", hostile(tmp_path, {}, dies=True), "--case", "lora.forward.usual"])
    shown = capsys.readouterr()
    assert (
        ended.value.code == 2
        and "ERROR 0 of 1" in shown.out
        and "the process ended with status 1: I cannot" in shown.err
    )


def test_a_program_that_exists_once_is_not_started_for_ever(chosen, tmp_path):
    """It has removed itself and then crashes: all other cases are reported, and after three starts none is tried."""
    once = tmp_path / "once"
    once.write_text(f"#!{sys.executable} -S\n" + HOSTILE.read_text())
    once.chmod(0o755)
    name = hostile(tmp_path, {chosen.cases[1].id: "crash"}, once=True)
    few = verify.Chosen(chosen.cases[:9], {})
    found = verify.run(f"exec:{shlex.join([str(once), *shlex.split(name)[-1:]])}", few)
    assert [r.outcome for r in found] == ["PASS"] + ["ERROR"] * 8
    assert all("cannot be started: No such file" in r.reason for r in found[2:])
    assert all("not asked: it failed to start 3 times" in r.reason for r in found[5:])


def test_a_program_that_does_not_read_is_asked_no_longer_than_the_limit():
    program = Program([sys.executable, "-S", "-c", "import time; time.sleep(600)"], 0.3)
    begun = time.perf_counter()
    with pytest.raises(Broken, match=r"no answer within 0\.3 s"):
        program.ask(do="case", padding="x" * (1 << 22))
    assert time.perf_counter() - begun < 5 and program.process.poll() is not None


def test_a_program_that_starts_late_is_not_waited_for(chosen, tmp_path, monkeypatch):
    monkeypatch.setattr("minipeft.conformance.program.START", 0.3)
    with pytest.raises(NotStarted, match=r"it does not start: no answer within 0\.3 s"):
        verify.run(hostile(tmp_path, {}, late=600), chosen, limit=0.1)


def test_side_by_side_with_a_hostile_one(chosen, tmp_path):
    case = chosen.cases[0]
    for mode, line in (
        ("link", "its output: expected a file, found a link"), ("traces", "its output: expected a file, found a pipe"),
        ("closed", "it closed its standard output"), ("half a character", r"error: .*script"),
    ):  # fmt: skip
        name = hostile(tmp_path, {case.id: mode})
        with pytest.raises(Bad, match=line) as why:
            diff.diff(name, name, case)
        assert str(why.value).startswith(f"implementation {name}: ")
    (tmp_path / "other").mkdir()
    (row,) = diff.diff(hostile(tmp_path, {}), hostile(tmp_path / "other", {case.id: "empty"}), case)
    assert not row.same and "shapes" in row.reason


@pytest.mark.slow
def test_the_plugin_with_a_program_that_cannot_be_started(tmp_path):
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "minipeft.conformance.plugin",
        "-p",
        "no:cacheprovider",
        "--conformance",
    ]
    for name, status, line in (
        ("exec:/no/such/program", 1, "cannot be started: No such file"), ("pefft", 4, "did you mean peft"), ("exec:'", 4, "quotation"),
    ):  # fmt: skip
        done = subprocess.run(
            [*words, name, "--conformance-method", "ia3"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == status and line in done.stdout + done.stderr, done
        assert "Traceback" not in done.stdout + done.stderr


def test_the_reports_are_written_and_do_nothing_to_a_terminal(chosen, tmp_path, capsys, monkeypatch):
    """Of a program whose words are hostile, and of another that cannot be started beside it."""
    monkeypatch.chdir(tmp_path)
    case = chosen.cases[0].id
    name = hostile(tmp_path, {case: "half a character"})
    words = [
        "verify",
        "-i",
        name,
        "--case",
        case,
        "--json",
        "r.json",
        "--junit",
        "r.xml",
        "--markdown",
        "r.md",
        "--html",
        "r.html",
    ]
    for more, status, outcomes in (([], 1, ["ERROR"]), (["-i", "exec:/no/such/program"], 2, ["ERROR"] * 2)):
        with pytest.raises(SystemExit) as ended:
            main(words + more)
        shown = capsys.readouterr()
        assert ended.value.code == status and ("cannot be started: No such file" in shown.err) == bool(more)
        texts = [Path(f"r.{end}").read_text(encoding="utf-8") for end in ("json", "xml", "md", "html")]
        for text in (*texts, shown.out, shown.err):
            assert not {c for c in text if ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\ufffe"} - {"\n"}
        assert [r.outcome for r in from_lines(texts[0])] == outcomes
        assert len(ElementTree.fromstring(texts[1]).findall("testsuite/testcase/error")) == len(outcomes)
        assert "<script>" not in texts[3].replace("<script>const", "").replace("<script>\nconst", "")
        path = tmp_path / "known.toml"
        expect.write_expectations(path, from_lines(texts[0]))
        assert [e.id for e in expect.read_expectations(path)] == [case] * len(outcomes)


@pytest.mark.parametrize(
    "said, cause",
    [
        ("", ""),
        ("\n\n", ""),
        ("loading\nno such device\n", "no such device"),
        ("Traceback (most recent call last):\n  File\nValueError: mine\n", "ValueError: mine"),
        ("thread 'main' panicked at src/main.rs:9:5:\nno A\nnote: run with `RUST_BACKTRACE=1`\n", "thread 'main' panicked at src/main.rs:9:5: no A"),
        ("panic: no A\n\ngoroutine 1 [running]:\nmain.main()\n\t/a/main.go:9 +0x18\n", "panic: no A"),
        ("file:///a/main.mjs:3\nthrow\n^\n\nTypeError: no A\n    at f (a)\n\nNode.js v20.1.0\n", "TypeError: no A"),
        ("main/Tensors.swift:9: Fatal error: no A\nCurrent stack trace:\n0 a\n", "main/Tensors.swift:9: Fatal error: no A"),
    ],
)  # fmt: skip
def test_why_a_process_ended_is_what_it_said_of_it(said, cause):
    assert _cause(said) == cause


def test_what_ends_a_process_has_a_name():
    with pytest.raises(Broken, match=r"^the process ended by SIGKILL$"):
        Program([sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)"], 10).ask(do="start")


WHOLE = dict(name="x", version="1", dtypes=["float64"], methods=["lora"], readings={"dora": {"grad": "full"}})


@pytest.mark.parametrize(
    "change, line",
    [
        (dict(name=7), r"has no name (str); found 7"),
        (dict(name="x" * 10**6), "has a name of 1,000,000 letters; expected at most 100"),
        (dict(version=None), "has no version (str); found None"),
        (dict(dtypes=[]), "'none'"),
        (dict(dtypes=[{}]), "has dtypes other than float64 and float32: {}"),
        (dict(methods="lora"), "has no methods (list)"),
        (dict(methods=[7]), "methods[0]: expected string, found 7"),
        (dict(readings=["dora"]), "readings: expected object, found ['dora']"),
        (dict(readings={"dora": "full"}), "readings.dora: expected object, found 'full'"),
        (dict(readings={"dora": {"grad": []}}), "readings.dora.grad: expected string, found []"),
    ],
)
def test_what_a_program_says_of_itself_is_looked_at(change, line):
    assert _odd(WHOLE) == _odd(WHOLE | dict(readings=None)) == ""
    assert line in _odd(WHOLE | change)


def test_names_that_cannot_be_started(tmp_path, chosen):
    for name, kind, line in (
        ("exec:'", Bad, "expected a command as a shell reads it: No closing quotation"),
        ("exec: ", Bad, "expected one of minipeft"),
        (f"exec:{tmp_path}", NotStarted, "cannot be started: Permission denied"),
        ("exec:\0", NotStarted, "cannot be started: embedded null byte"),
    ):
        with pytest.raises(kind, match=line):
            Program(command_of(name), 1.0)
    with pytest.raises(NotStarted, match="cannot be started: Permission denied"):
        verify.run("python:a:b", chosen, python=str(tmp_path))


# --- recorded cases ---------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path):
    """A folder of cases of one method: (IA)³'s."""
    index = json.loads((cases.SHIPPED / "index.json").read_text())
    index["cases"] = [c for c in index["cases"] if c["id"].startswith("ia3.")]
    shutil.copytree(cases.SHIPPED / "ia3", tmp_path / "cases" / "ia3")
    (tmp_path / "cases" / "index.json").write_text(json.dumps(index))
    return tmp_path / "cases"


USUAL = "ia3/forward/usual"


def told(folder, change, listed=True):
    """Change case.json, and its digest in index.json if it is to be listed."""
    path, index = folder / USUAL / "case.json", folder / "index.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    if listed:
        found = json.loads(index.read_text())
        entry = next(c for c in found["cases"] if c["path"] == USUAL)
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        index.write_text(json.dumps(found))


def indexed(folder, change):
    path = folder / "index.json"
    found = json.loads(path.read_text())
    change(next(c for c in found["cases"] if c["path"] == USUAL), found)
    path.write_text(json.dumps(found))


def lines_of(about, name, **change):
    about["tensors"][name] |= change


DAMAGE = {
    "digest": (lambda f: told(f, lambda a: a.update(seed=1), listed=False), "not the one in index.json: the file was changed"),
    "K": (lambda f: told(f, lambda a: a["tolerance"].update(K=1e300)), "tolerance.K: expected a number of maximum 256"),
    "K 0": (lambda f: told(f, lambda a: a["tolerance"].update(K=0)), "tolerance.K: expected a number of exclusiveMinimum 0"),
    "K true": (lambda f: told(f, lambda a: a["tolerance"].update(K=True)), "tolerance.K: expected number, found True"),
    "no K": (lambda f: told(f, lambda a: a["tolerance"].pop("K")), "the class COND has no K"),
    "cond": (lambda f: told(f, lambda a: a["want"]["y"].update(cond=1e300)), "let pass what is not"),
    "cond nan": (lambda f: told(f, lambda a: a["want"]["y"].update(cond=float("nan"))), "want.y.cond: expected number, found nan"),
    "cond below": (lambda f: told(f, lambda a: a["want"]["y"].update(cond=-1.0)), "want.y.cond: expected a number of minimum 0"),
    "class": (lambda f: told(f, lambda a: a["tolerance"].update({"class": "REJECT"})), "expected a refusal or tensors"),
    "class odd": (lambda f: told(f, lambda a: a["tolerance"].update({"class": []})), "tolerance.class: expected one of EXACT"),
    "ask": (lambda f: told(f, lambda a: a.update(ask="dream")), "ask: expected one of combine"),
    "config": (lambda f: told(f, lambda a: a.update(config=[])), "config: expected object, found []"),
    "source": (lambda f: told(f, lambda a: a.pop("source")), "expected source"),
    "witnesses": (lambda f: told(f, lambda a: a.update(witnesses=[7])), r"witnesses[0]: expected string, found 7"),
    "role": (lambda f: told(f, lambda a: lines_of(a, "x", role="king")), "tensors.x.role: expected one of input"),
    "shape": (lambda f: told(f, lambda a: lines_of(a, "x", shape=[3, 4, 15])), "'x': expected float64 of [3, 4, 15], found float64 of [3, 4, 14]"),
    "dtype": (lambda f: told(f, lambda a: lines_of(a, "x", dtype="float32")), "'x': expected float32 of [3, 4, 14], found float64"),
    "tensor": (lambda f: told(f, lambda a: a["tensors"].pop("x")), "'x': expected nothing, found float64 of [3, 4, 14]"),
    "another id": (lambda f: told(f, lambda a: a.update(variant="usuel")), "expected the id METHOD.CHECK.VARIANT"),
    "another case": (
        lambda f: told(f, lambda a: a.update(variant="usuel", id="ia3.forward.usuel")), "expected a case that index.json lists",
    ),
    "no digest": (lambda f: told(f, lambda a: a["digests"].pop("want.safetensors")), "want.safetensors: it has no digest in case.json"),
    "another file": (lambda f: (f / USUAL / "more").touch(), "more: it has no digest in case.json"),
    "no file": (lambda f: (f / USUAL / "want.safetensors").unlink(), "case.json has its digest, it is not there"),
    "outside": (lambda f: told(f, lambda a: a["digests"].update({"../usual/case.json": "0" * 64})), "it is not there"),
    "pipe": (
        lambda f: ((f / USUAL / "in.safetensors").unlink(), os.mkfifo(f / USUAL / "in.safetensors")), "expected a file, found a pipe",
    ),
    "no JSON": (lambda f: (f / USUAL / "case.json").write_text("[" * 10**5), "case.json: expected JSON"),
    "no case": (lambda f: shutil.rmtree(f / USUAL), "case.json: no such file"),
    "link": (lambda f: (shutil.move(f / USUAL, f / "elsewhere"), (f / USUAL).symlink_to(f / "elsewhere")), "or a link to elsewhere"),
    "path": (lambda f: indexed(f, lambda c, i: c.update(path=f"../cases/{USUAL}")), "to lie at ia3/forward/usual, found '../cases"),
    "absolute": (lambda f: indexed(f, lambda c, i: c.update(path=f"{f}/{USUAL}")), "to lie at ia3/forward/usual, found '/"),
    "entry": (lambda f: indexed(f, lambda c, i: i["cases"].remove(c)), "expected a case that index.json lists; it lists none there"),
    "no sha256": (lambda f: indexed(f, lambda c, i: c.pop("sha256")), "expected sha256"),
    "twice": (lambda f: indexed(f, lambda c, i: i["cases"].append(c)), "it lists a case twice"),
    "format": (lambda f: indexed(f, lambda c, i: i.update(format=2)), "expected an index of format 1, found 2"),
    "index": (lambda f: ((f / "index.json").unlink(), os.mkfifo(f / "index.json")), "index.json: expected a file, found a pipe"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_cases_are_read_as_they_were_recorded_or_not_at_all(name, copied):
    damage, line = DAMAGE[name]
    assert len(list(cases.load(copied))) > 10
    damage(copied)
    with pytest.raises(cases.Damaged) as why:
        list(cases.load(copied))
    assert line in str(why.value) and "\n" not in str(why.value), why.value
    if "path" not in name and name not in ("absolute", "entry", "twice", "format", "index", "no sha256", "no case"):
        with pytest.raises(cases.Damaged):  # as a program reads it, by its folder
            cases.read(copied / USUAL)


def test_a_case_that_the_index_does_not_list_is_not_read(copied):
    indexed(copied, lambda c, i: i["cases"].remove(c))
    with pytest.raises(cases.Damaged, match=r"it lists no ia3\.forward\.usual"):
        cases.read(copied / USUAL)


def test_damage_has_status_three(copied, capsys):
    told(copied, lambda a: a["tolerance"].update(K=1e300), listed=False)
    with pytest.raises(SystemExit) as ended:
        main(["verify", "--cases", str(copied)])
    assert ended.value.code == 3 and capsys.readouterr().err.count("\n") == 1


# --- files and words --------------------------------------------------------------------------------------------------


def test_a_file_of_expectations_is_looked_at(tmp_path):
    path = tmp_path / "known.toml"
    os.mkfifo(tmp_path / "pipe")
    with path.open("wb") as f:
        f.truncate(1 << 40)
    for given, line in (
        (tmp_path, "found a folder"),
        (tmp_path / "pipe", "found a pipe"),
        (path, "at most 16,777,216 bytes"),
    ):
        with pytest.raises(Bad, match=line):
            expect.read_expectations(given)
    for text in ("expect = 7", "expect = [7]", "[[expect]]\nid = 7\noutcome = 'FAIL'", "[[expect]]\nid = 'a'\noutcome = 'FAULT'",
                 "a = " + "[" * 10**5, "[[expect]]\nid = 'a'\noutcome = 'FAIL'\nname = 7"):  # fmt: skip
        path.write_text(text)
        with pytest.raises(Bad, match=r"known.toml: expected \[\[expect\]\] tables"):
            expect.read_expectations(path)


def test_folders_of_cases_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for given in (tmp_path / "pipe", tmp_path / "none", tmp_path):
        with pytest.raises(Bad, match="no such"):
            verify.choose(given)


def test_results_of_anybody():
    good = Result("x", "1", "a.forward.usual", "PASS", reason="\x1b\x7f\u202e\x9b é\U000e0001")
    text = to_lines([good])
    assert (
        from_lines(text) == [good] and not set(text) & {"\x1b", "\x7f", "\u202e", "\x9b", "\U000e0001"} and "é" in text
    )
    for change in (
        dict(id="a"),
        dict(id=7),
        dict(reason=[]),
        dict(readings=[]),
        dict(ratio={}),
        dict(worst=7),
        dict(url=None),
    ):
        with pytest.raises(Bad, match="result 1: expected one of minipeft verify"):
            from_lines(json.dumps([json.loads(text)[0] | change]))
    with pytest.raises(Bad, match="as JSON"):
        from_lines("[" * 10**5)


def test_addresses():
    for url in ("https://example.org/a?b=c#d", "http://e.org/%20", "deviations.md#odd"):
        assert address(url) == url
    for url in (
        "javascript:x",
        "https://a b",
        "https://a\nb",
        "https://a)b",
        'https://a"b',
        "https://" + "a" * 400,
        "ftp://a",
        "deviations.md",
    ):
        assert address(url) == ""


def test_factors_of_any_shape_and_dtype():
    of_pissa = [c for c in cases.load(methods=["pissa"]) if c.tolerance == "SUBSPACE"]
    case = next(c for c in of_pissa if "BA" in c.want and c.inputs["W"].shape == (10, 14))
    r = 2
    for A, B in (
        (np.zeros((r, 14), np.float16), np.zeros((10, r), np.float16)), (np.zeros((14, r)), np.zeros((10, r))),
        (np.zeros(()), np.zeros(())), (np.zeros((10**5, 14)), np.zeros((10, 10**5))), (np.zeros((r, 14)), np.zeros((10, r))),
        (np.full((r, 14), np.nan), np.zeros((10, r))), (np.zeros((0, 14)), np.zeros((10, 0))),
    ):  # fmt: skip
        with np.errstate(all="ignore"):
            found = verify.judge(case, dict(A=A, B=B), Result("x", "1", case.id, "SKIP"))
        assert found.outcome == "FAIL" and found.reason


def test_what_is_read_is_what_was_opened(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    (tmp_path / "link").symlink_to(path)
    assert taking.contents(path, 4) == taking.contents(tmp_path / "link", 4) == b"1234"
    for given, line in (
        (path, "at most 3 bytes, found 4"),
        (tmp_path / "link", "found a link"),
        (Path("/dev/zero"), "found a device"),
    ):
        with pytest.raises(Bad, match=line):
            taking.contents(given, 3, links=False)
