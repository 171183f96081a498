"""The beginnings of harnesses pass as they are written, and fail when they are broken."""

import json
import shlex
import shutil
import struct
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minipeft.cli import main as command_line
from minipeft.conformance import verify
from minipeft.conformance.languages import LANGUAGES, SKELETONS
from minipeft.conformance.new import main, skeleton
from minipeft.conformance.results import from_lines
from minipeft.conformance.verdicts import verdict
from minipeft.errors import Bad

CHECKS = {"forward": 4, "dropout": 2, "grad": 4, "merge": 4, "delta": 4}  # that a skeleton passes, and their cases
BUILD = {  # how a compiled one is built, and the command that runs one
    "c": (["make"], "harness"),
    "rust": (["cargo", "build", "--offline", "--quiet"], "target/debug/harness"),
    "go": (["go", "build", "-o", "harness", "."], "harness"),
    "swift": (["swift", "build"], ".build/debug/harness"),
    "javascript": ([], "node"),
}
TOOL = {"c": "cc", "rust": "cargo", "go": "go", "swift": "swiftc", "javascript": "node"}


def languages(*names, cheap=()):
    """Parameters: what is not cheap is left to the suite with the libraries, what is not installed is skipped."""
    out = []
    for name in names:
        absent = name in TOOL and shutil.which(TOOL[name]) is None
        marks = [pytest.mark.skipif(absent, reason=f"{TOOL.get(name)} is not installed")]
        out.append(pytest.param(name, marks=marks if name in cheap else [*marks, pytest.mark.hf]))
    return out


def built(language, folder, edit=None):
    """The name of a skeleton's implementation, written to a folder, edited and built there."""
    skeleton(language, folder)
    if edit is not None:
        name, right, wrong = edit
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(right) == 1
        (folder / name).write_text(text.replace(right, wrong), encoding="utf-8")
    if language not in BUILD:
        if language != "python":
            pytest.importorskip({"pytorch": "torch", "mlx": "mlx.core"}.get(language, language))
        return "python:harness:implementation"
    words, program = BUILD[language]
    if language == "c" and shutil.which("make") is None:
        words = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-std=c99", "harness.c", "-lm", "-o", "harness"]
    if words:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr
    run = [program, str(folder / "main.mjs")] if language == "javascript" else [str(folder / program)]
    return f"exec:{shlex.join(run)}"


def judged(name, folder, monkeypatch, **chosen):
    """The results of an implementation on LoRA's cases; a harness in Python is found in its folder."""
    monkeypatch.chdir(folder)
    return verify.run(name, verify.choose(methods=["lora"], **chosen), jobs=1)


@pytest.mark.parametrize("language", languages(*LANGUAGES, cheap=("python", "c")))
def test_every_skeleton_passes_and_every_report_says_what_is_not_answered(language, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a harness"
    name = built(language, folder)
    monkeypatch.chdir(folder)
    kinds = dict(json="r.json", markdown="r.md", html="r.html", junit="r.xml")
    with pytest.raises(SystemExit) as ended:
        command_line(["verify", "-i", name, "lora", *(w for k, v in kinds.items() for w in (f"--{k}", v))])
    shown = " ".join(capsys.readouterr().out.split())
    results = from_lines((folder / "r.json").read_text(encoding="utf-8"))
    told = str(verdict(results))
    assert ended.value.code == 0, shown
    if language == "javascript":
        n, all_ = sum(r.outcome == "PASS" for r in results), len(results)
        assert told == f"PASS {n} of {all_} ({all_ - n} not answered: embedding, load)" and all_ - n == 4
    else:
        right = Counter(r.id.split(".")[1] for r in results if r.outcome == "PASS")
        assert right == CHECKS and all("is not there" in r.reason for r in results if r.outcome != "PASS")
        left = len(results) - right.total()
        assert told.startswith(f"PASS {right.total()} of {len(results)} ({left} not answered: combine, ")
    for text in (shown, *((folder / kinds[k]).read_text(encoding="utf-8") for k in ("markdown", "html", "junit"))):
        assert told in text


def test_python_passes_in_float32(tmp_path, monkeypatch):
    name = built("python", tmp_path)
    monkeypatch.chdir(tmp_path)
    results = verify.run(name, verify.choose(methods=["lora"], checks=list(CHECKS)), jobs=1, dtype="float32")
    assert Counter(r.outcome for r in results) == {"PASS": sum(CHECKS.values())}


def test_a_broken_copy_is_explained(tmp_path, monkeypatch):
    edit = ("harness.py", '["alpha"] / (math.sqrt(r) if config["rslora"] else r)', '["alpha"]')
    results = judged(built("python", tmp_path, edit), tmp_path, monkeypatch, checks=["forward", "grad", "delta"])
    assert Counter(r.outcome for r in results) == {"FAIL": 12}
    undivided = next(r for r in results if r.id == "lora.forward.usual")
    assert any("alpha_undivided" in d for d in undivided.diagnosis), undivided


TWICE = {  # x Aᵀ Bᵀ is doubled
    "c": ("harness.c", "add_product(low, 1, matrix(h,", "add_product(low, 2, matrix(h,"),
    "go": ("methods.go", "low := h.times(a.B.transposed())", "low := h.times(a.B.transposed()).scaled(2)"),
    "javascript": ("methods.mjs", "product(h, B, { right: true })", "times(2, product(h, B, { right: true }))"),
    "rust": ("src/methods.rs", "h.times(&high.transposed())", "h.times(&high.transposed()).scaled(2.0)"),
    "swift": ("Sources/harness/Methods.swift", "h.times(a.B.transposed)", "h.times(a.B.transposed).scaled(2)"),
}


@pytest.mark.parametrize("language", languages(*LANGUAGES, cheap=("python",)))
def test_a_planted_mistake_is_found_where_it_is(language, tmp_path, monkeypatch, capsys):
    name = built(language, tmp_path, TWICE.get(language, ("harness.py", "low = h @ B.T", "low = 2 * h @ B.T")))
    (result,) = judged(name, tmp_path, monkeypatch, ids=["lora.forward.usual"])
    assert result.outcome == "FAIL"
    with pytest.raises(SystemExit) as ended:
        command_line(["verify", "bisect", name, "--case", "lora.forward.usual"])
    beside = "; minipeft has no b" if language == "c" else ""  # which traces the bias too
    assert ended.value.code == 1 and capsys.readouterr().out.endswith(f"\ndeparts at 2.low{beside}\n")


# --- compiled programs read what they are given by themselves ---------------------------------------------------------


@pytest.fixture(scope="module", params=languages("c", "rust", "go", "swift", cheap=("c",)))
def program(request, tmp_path_factory):
    name = built(request.param, tmp_path_factory.mktemp("program") / "harness")
    return shlex.split(name.removeprefix("exec:"))


def said(program, lines):
    """The answers to some lines; after them the program must end well."""
    lines = [*lines, b'{"do": "stop"}']
    done = subprocess.run(program, input=b"\n".join(lines) + b"\n", capture_output=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


GARBAGE = [
    b"", b"nonsense", b"{", b"[]", b'{"do": 1}', b'{"do": "dance"}', b'{"do": "case"}', b'{"do": "case", "folder": "/nowhere"}',
    b'{"do": "start"} more', b'{"do": "\\ud800"}', b'{"do": "\\u12"}', b'{"do": "\\x"}', b'{"do": "start', b'{"do": 1e999}',
    b'{"do": 01}', b'{"do": -}', b'{"do": tru', b"[" * 100_000, b'{"do": "\xff"}', b'{"do": "a\x00b"}', b'{"do":"start"}\x00',
]  # fmt: skip


def answers_errors(program):
    answers = said(program, [*GARBAGE, b'{"do": "start", "format": 1, "more": [null, true, "\\ud83d\\ude00"]}'])
    assert [a.get("status") for a in answers[:-1]] == ["error"] * len(GARBAGE)
    assert all(a["reason"] for a in answers[:-1])
    assert answers[-1]["methods"][0] == "lora"


def test_garbage_is_an_error_and_the_program_goes_on(program):
    answers_errors(program)


@pytest.mark.parametrize("language", languages("javascript"))
def test_garbage_is_an_error_in_a_program_that_is_not_compiled(language, tmp_path):
    answers_errors(shlex.split(built(language, tmp_path).removeprefix("exec:")))


def test_another_format_ends_the_program(program):
    done = subprocess.run(program, input=b'{"do": "start", "format": 2}\n', capture_output=True, timeout=20)
    assert done.returncode != 0 and b"format 1" in done.stderr and not done.stdout


def file(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape, begin, end, dtype="F64"):
    return dict(dtype=dtype, shape=shape, data_offsets=[begin, end])


def test_files_that_are_damaged_are_an_error(program, tmp_path):
    whole = verify.choose(ids=["lora.forward.usual"], methods=["lora"]).cases[0].folder
    good = (whole / "in.safetensors").read_bytes()
    n = struct.unpack("<Q", good[:8])[0]
    header, data = json.loads(good[8 : 8 + n]), good[8 + n :]
    size = len(data)
    damaged = [
        b"", b"1234567", good[:100], good[:-8], file(b"{}", length=2**63), file(b"{}", length=2**64 - 8), file(b"{}"), file(b"[]"),
        file(b"{} {}"), file({"x": entry([2**32, 2**32], 0, 0)}), file({"x": entry([2**53], 0, size)}, data),
        file(header | {"x": entry([3, 4, 14], 8, 0)}, data), file(header | {"x": entry([3, 4, 14], -8, 0)}, data),
        file(header | {"x": entry([3, 4, 14], size, size + 1344)}, data), file(header | {"x": entry([3, 4, 15], 0, 1344)}, data),
        file(header | {"x": entry([], 0, 8)}, data), file(header | {"W": entry([0, 14], 0, 0)}, data),
        file(header | {"A": entry([0, 14], 0, 0)}, data), file(header | {"b": entry([], 0, 8)}, data),
        file(header | {"W": entry([1.5, 14], 0, 168)}, data), file(header | {"x": entry([3, 4, 14], 0, 1344, "I99")}, data),
        file(header | {"x": dict(shape=[1])}, data), file(header | {"x": entry([1] * 99 + [0], 0, 0)}, data),
        file({k: v for k, v in header.items() if k != "A"}, data),
    ]  # fmt: skip
    lines = []
    for i, content in enumerate(damaged):
        folder = shutil.copytree(whole, tmp_path / f"ünïcode {i}")
        (folder / "in.safetensors").write_bytes(content)
        out = str(tmp_path / "out.safetensors")
        lines.append(dict(do="case", id=f"case.{i}", folder=str(folder), out=out, dtype="float64"))
    answers = said(program, [json.dumps(line).encode() for line in lines])
    assert [a["id"] for a in answers] == [line["id"] for line in lines]
    assert [a["status"] for a in answers] == ["error"] * len(damaged)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("dtype", ["F64", "F32", "I64", "I32", "U8"])
def test_every_dtype_of_the_format_is_read(dtype, program, tmp_path):
    kind = dict(F64="<f8", F32="<f4", I64="<i8", I32="<i4", U8="u1")[dtype]
    rng = np.random.default_rng(0)
    given = {
        n: rng.integers(0 if dtype == "U8" else -9, 9, s).astype(kind)
        for n, s in dict(W=(4, 6), b=(4,), A=(2, 6), B=(4, 2)).items()
    }
    whole = verify.choose(ids=["lora.merge.usual"], methods=["lora"]).cases[0].folder
    folder, out = shutil.copytree(whole, tmp_path / "case"), tmp_path / "out.safetensors"
    save_file(given, folder / "in.safetensors")
    line = dict(do="case", folder=str(folder), out=str(out))
    lines = [json.dumps(line | more).encode() for more in (dict(id='a "case" \\'), {})]
    assert said(program, lines) == [dict(id='a "case" \\', status="done"), dict(status="done")]
    assert np.array_equal(load_file(out)["W"], given["W"] + 3.0 * (given["B"].astype(float) @ given["A"].astype(float)))


@pytest.mark.parametrize(
    "change, status",
    [
        (dict(config=dict(r=2**52, alpha=6.0, rslora=False, lora_bias=False, dropout=0.0)), "error"),
        (dict(config=dict(r=2.5, alpha=6.0, rslora=False, lora_bias=False, dropout=0.0)), "error"),
        (dict(config=dict(r=2, alpha="6", rslora=False, lora_bias=False, dropout=0.0)), "error"),
        (dict(place="table"), "unsupported"),
        (dict(method="dora"), "unsupported"),
        (dict(ask="dream"), "unsupported"),
        (dict(ask=3), "error"),
        (dict(more={"ignored": [1, -2.5e-3, None]}), "done"),
    ],
)
def test_what_a_case_says_is_heeded(change, status, program, tmp_path):
    whole = verify.choose(ids=["lora.forward.usual"], methods=["lora"]).cases[0].folder
    folder = shutil.copytree(whole, tmp_path / "case")
    about = json.loads((whole / "case.json").read_bytes()) | change
    (folder / "case.json").write_text(json.dumps(about))
    line = dict(do="case", folder=str(folder), out=str(tmp_path / "out.safetensors"), dtype="float64")
    single, double = said(program, [json.dumps(line | extra).encode() for extra in (dict(dtype="float32"), {})])
    assert double["status"] == status and single["status"] == "unsupported"


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_skeleton_tells_how_to_go_on(language, tmp_path):
    written = skeleton(language, tmp_path / "new" / "harness")
    assert all(p.is_file() for p in written)
    assert {p.name for p in (SKELETONS / language).iterdir()} - {"__pycache__"} == {
        p.name for p in (tmp_path / "new" / "harness").iterdir()
    }
    page = (tmp_path / "new" / "harness" / "README.md").read_text(encoding="utf-8")
    assert "minipeft verify -i" in page and " lora --check forward" in page and "**A method**" in page


@pytest.mark.parametrize(
    "word, line",
    [
        ("rsut", r"language 'rsut': expected one of c, go, .* swift \(did you mean rust\?\)"),
        ("Python", r"language 'Python': expected one of .*\(did you mean python"),
        ("../c", r"language '../c': expected one of"),
        ("fortran", r"language 'fortran': expected one of c, .*, swift$"),
    ],
)
def test_an_unknown_language_is_one_line(word, line, tmp_path):
    with pytest.raises(Bad, match=line):
        skeleton(word, tmp_path / "harness")
    assert not (tmp_path / "harness").exists()


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "mine.c").write_text("int main(void) { return 0; }")
    with pytest.raises(Bad, match=r"expected an empty folder or none, found mine\.c"):
        skeleton("c", tmp_path)
    with pytest.raises(Bad, match="expected a folder, found a file"):
        skeleton("c", tmp_path / "mine.c")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.c"]


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command_line(["verify", "new", "python", "harness"])
    assert ended.value.code == 0 and "harness/harness.py" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        command_line(["verify", "new", "python", "harness"])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    main(["c", "other"])
    assert "other/harness.c" in capsys.readouterr().out
    for words in (["c"], ["d", "more"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2 and capsys.readouterr().err.startswith("minipeft: ")


def test_the_module_is_a_program():
    words = [sys.executable, "-m", "minipeft.conformance.new"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "expected LANGUAGE FOLDER" in done.stderr
