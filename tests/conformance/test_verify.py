"""Implementations in processes of their own: what they get wrong is said, and the run goes on."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import safetensors
import scipy
from sampled import in_turn

from minipeft.cli import main
from minipeft.conformance import diff, expect, field, serve, verify
from minipeft.conformance.results import Result, from_lines, to_lines
from minipeft.errors import Bad

HARNESS = """
import os, sys, time
import numpy as np
from minipeft.conformance.cases import Rejected, Unsupported
from minipeft.conformance.own import Own

class Odd(Own):
    def info(self):
        return super().info() | dict(name="odd", methods=["lora", "dora", "ia3", "loha"], readings={"dora": {"grad": "full"}})

    def forward(self, case):
        kind = f"{case.method}.{case.variant}"
        if kind == "lora.usual":
            os._exit(7)
        if kind == "ia3.usual":
            time.sleep(60)
        y = super().forward(case)["y"]
        if kind == "loha.usual":
            return dict(y=y * np.nan)
        if kind == "lora.rslora=True":
            return dict(y=y[:2])
        if kind == "lora.lora_bias=True":
            return dict(y=y.astype(np.float32))
        return dict(z=y) if kind == "dora.rslora=True" else dict(y=y)

    def delta(self, case):
        raise Unsupported("no deltas", "https://example.org/1")

    def merge(self, case):
        print("chatter")
        if case.method == "ia3":
            sys.__stdout__.write("not json\\n")
            sys.__stdout__.flush()
        return super().merge(case)

    def unmerge(self, case):
        raise ValueError("two\\nlines")
"""


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """The name of the odd implementation, which processes that are started find."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd_harness.py").write_text(HARNESS)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
    yield "python:odd_harness:Odd"
    os.environ.pop("PYTHONPATH")
    if before:
        os.environ["PYTHONPATH"] = before


def test_what_happened_is_said(harness):
    """In one test, for it waits for an answer that does not come."""
    usual = [f"{method}.forward.usual" for method in ("lora", "ia3", "loha", "vera")]
    others = ["forward.*=True", "delta.usual", "*merge.usual", "load.missing"]
    others = [f"lora.{case}" for case in others] + ["dora.forward.*=True", "dora.grad.*", "ia3.merge.usual"]
    chosen = verify.choose(ids=usual + others)
    odd = {r.id: r for r in verify.run(harness, chosen, jobs=1, limit=4.0)}
    for case, outcome, reason in (
        ("lora.forward.usual", "ERROR", "the process ended with status 7"),
        ("ia3.forward.usual", "ERROR", "no answer within 4 s"),
        ("loha.forward.usual", "FAIL", "y has NaN or infinite values"),
        ("lora.forward.rslora=True", "FAIL", "y: expected shape (3, 4, 10), found (2, 4, 10)"),
        ("lora.forward.lora_bias=True", "FAIL", "y: expected dtype float64, found float32"),
        ("dora.forward.rslora=True", "N/A", "its reading is grad=full"),
        ("dora.grad.grad=full", "READING", ""),
        ("dora.grad.usual", "N/A", "its reading is grad=full"),
        ("lora.delta.usual", "SKIP", "no deltas"),
        ("ia3.merge.usual", "ERROR", "expected one JSON object on a line, found 'not json'"),
        ("lora.merge.usual", "PASS", ""),
        ("lora.unmerge.usual", "ERROR", "ValueError: two lines"),
        ("lora.load.missing", "PASS", "lacks"),
        ("vera.forward.usual", "SKIP", "this method is not there"),
    ):
        assert (odd[case].outcome, reason in odd[case].reason) == (outcome, True), odd[case]
    assert len(odd) == len(chosen.cases)
    assert odd["lora.delta.usual"].url == "https://example.org/1"


@pytest.mark.wide
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kernels", ["", "Prescott"], ids=["these", "of 2004"])
def test_minipeft_passes_all_and_nothing_is_near_its_bound(kernels, dtype, monkeypatch):
    """No verdict turns on the order in which a processor's kernels add: with twice the error, and with half the bound, it is the same."""
    if kernels:
        monkeypatch.setenv("OPENBLAS_CORETYPE", kernels)
    chosen = verify.choose()
    results = verify.run("minipeft", chosen, dtype=dtype)
    assert {r.outcome for r in results} == {"PASS"}
    k = {c.id: c.k for c in chosen.cases if c.tolerance in ("COND", "SUBSPACE")}
    assert [(r.id, r.ratio) for r in results if r.id in k and r.ratio is not None and r.ratio > k[r.id] / 2] == []


@pytest.mark.parametrize(
    "name, line",
    [
        ("pefft", "expected one of .*peft"),
        ("exec:/no/such/program", "cannot be started: No such file"),
        ("python:no_such_module:thing", "it does not start: the process ended with status 1"),
        ("exec:echo hello", "it does not start: expected one JSON object on a line, found 'hello'"),
        ("""exec:echo '{"name": "x"}'""", r"its answer to start has no version \(str\)"),
    ],
)
def test_what_cannot_be_started_is_one_line(name, line):
    with pytest.raises(Bad, match=line):
        verify.run(name, verify.choose(methods=["lora"], checks=["forward"]))


def test_a_run_of_nothing_is_one_line():
    with pytest.raises(Bad, match=r"case 'lora.forward.usuel' is not recorded \(did you mean lora.forward.usual"):
        verify.choose(ids=["lora.forward.usuel"])
    with pytest.raises(Bad, match="no recorded case is of these methods and checks"):
        verify.choose(methods=["houlsby"], checks=["merge"])


# --- expectations -----------------------------------------------------------------------------------------------------


def outcome(case, what):
    return Result(implementation="x", version="1", id=case, outcome=what, reason="why", ratio=float("nan"))


def test_known_failures(tmp_path):
    results = [outcome("a.forward.usual", "FAIL"), outcome("b.grad.usual", "PASS"), outcome("c.init.usual", "ERROR")]
    path = tmp_path / "known.toml"
    assert expect.write_expectations(path, results) == 2
    expected = expect.read_expectations(path)
    assert expect.unexpected(results, expected) == []
    assert expect.unexpected(results, expected[:1]) == ["x c.init.usual: ERROR: why"]
    more = [*expected, expect.Expectation("b.*", "FAIL", "https://example.org/2"), expect.Expectation("z.*", "FAIL")]
    assert expect.unexpected(results, more) == [
        "x b.grad.usual: passes, but FAIL is expected: https://example.org/2",
        "expectation 'z.*' matches no case",
    ]
    known = [expect.Expectation("a.*", "FAIL", "https://example.org/3", "a reason")]
    expect.write_expectations(path, results, known)
    assert expect.read_expectations(path)[0].url == "https://example.org/3"
    path.write_text("[[expect]]\nname = 1\n")
    with pytest.raises(Bad, match="expected \\[\\[expect\\]\\] tables with id, outcome, url and reason"):
        expect.read_expectations(path)


def test_lines():
    results = [outcome("a.forward.usual", "FAIL"), outcome("b.grad.usual", "PASS")]
    text = to_lines(results)
    assert to_lines(from_lines(text)) == text and "NaN" not in text
    assert [r["id"] for r in json.loads(text)] == ["a.forward.usual", "b.grad.usual"]
    for wrong, said in (
        ("{}", "array"),
        ("nonsense", "as JSON"),
        ("[7]", "result 1"),
        (text.replace("FAIL", "FAILED"), "result 1"),
    ):
        with pytest.raises(Bad, match=said):
            from_lines(wrong)


# --- the command line, the plugin, Hypothesis ---------------------------------------------------------------------------


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "verify lora ia3 --json r.json --junit r.xml --markdown r.md --html r.html"
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 0 and "lora" in capsys.readouterr().out
    assert {r.outcome for r in from_lines(Path("r.json").read_text())} == {"PASS"}
    assert all(Path(f"r.{end}").stat().st_size > 50 for end in ("xml", "md", "html"))
    with pytest.raises(SystemExit) as ended:
        main(["verify", "-i", "pefft"])
    assert ended.value.code == 2 and "did you mean peft" in capsys.readouterr().err


@pytest.mark.wide
def test_what_is_required_and_not_answered_is_a_failure_of_the_run(tmp_path, capsys, harness):
    """Whatever is expected of the cases: a line for each method, status 1, and a test case that fails."""
    words = [
        "verify",
        "-i",
        harness,
        "--case",
        "ia3.[dg]*.usual",
        "--case",
        "lora.grad.usual",
        "--junit",
        str(tmp_path / "r.xml"),
    ]
    for more, status, line in (
        ([], 0, ""), (["--require", "gradient"], 0, ""), (["--require", "gard"], 2, "did you mean grad"),
        (["--require", "grad,delta"], 1, f"{harness} ia3: required and not answered: delta (1)"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        shown = capsys.readouterr()
        assert ended.value.code == status and line in shown.out + shown.err, shown
        if status != 2:
            assert ("PASS 2 of 3 (1 not answered: delta)" in shown.out) and "asked: 4 of the" in shown.out
    assert "required and not answered: delta" in (tmp_path / "r.xml").read_text()


def test_a_failure_has_status_one_until_it_is_expected(tmp_path, capsys, harness):
    words = ["verify", "-i", harness, "--case", "loha.forward.usual"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1 and "NaN" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([*words, "--expect", str(tmp_path / "e.toml"), "--expect-update"])
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        main([*words, "--expect", str(tmp_path / "e.toml")])
    assert ended.value.code == 0


@pytest.mark.wide
def test_a_harness_is_judged_by_what_is_known_of_its_library(harness, monkeypatch, capsys):
    """Known failures are shown, with where they are told, and status 0; what is known of other cases is not missed; a new one is 1."""
    known = [
        expect.Expectation("loha.forward.*", "FAIL", "https://example.org/9", "it is odd"),
        expect.Expectation("vera.*", "FAIL", "https://example.org/10"),
        expect.Expectation("loha.grad.usual", "FAIL", "https://example.org/11", dtype="float32"),
    ]
    monkeypatch.setattr(expect, "of_harness", lambda name: known)
    for words, code, said in (
        ("loha", 1, "loha.unmerge.usual (and 1 more): ERROR"),
        ("--case loha.[fg]*.usual", 0, "1 of 1 failures are known: docs/deviations.md"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["verify", "-i", harness, *words.split()])
        out = capsys.readouterr().out
        assert ended.value.code == code and said in out and "https://example.org/9" in out
        assert "NaN" in out and "matches no case" not in out


HOSTILE = """
from minipeft.conformance.cases import Unsupported
from minipeft.conformance.own import Own

class Hostile(Own):
    def info(self):
        return super().info() | dict(name="[red]x[/red]", version="\x1b]0;title\x07 [bold]1[/bold]")

    def forward(self, case):
        raise ValueError("[blink]\x1b[2J\u202e wiped [/nothing] " + "w" * 300)

    def trace(self, case):
        y = super().forward(case)["y"]
        return {"0.[red]\x1b[31mbase": y, "0.base": y + 1, "6.y": y}

    def delta(self, case):
        return {"delta": super().delta(case)["delta"] + 1, "[/red]\x1b": super().delta(case)["delta"]}
"""


@pytest.mark.parametrize(
    "words",
    in_turn(
        [
            "verify ia3 -i NAME",
            "verify ia3 lora -i NAME -i minipeft",
            "verify diff NAME NAME --case ia3.delta.usual",
            "verify bisect NAME --case ia3.delta.usual",
        ],
        every=4,
    ),
)
def test_what_an_implementation_says_does_nothing_to_the_terminal(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "hostile.py").write_text(HOSTILE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    name = "python:hostile:Hostile"
    with pytest.raises(SystemExit):
        main(words.replace("NAME", name).split())
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert not {c for c in text if ord(c) < 32 or c in "\x7f\u202e"} - {"\n"}
    lines = [line for line in shown.out.splitlines() if not line.startswith(name)]  # one a failure, to be searched
    assert max(map(len, lines)) <= 80
    if "ia3 " in words:
        assert "[blink]" in shown.out and "[/nothing]" in shown.out


@pytest.mark.wide
def test_two_implementations_side_by_side(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["verify", "diff", "minipeft", "minipeft", "--case", "lora.grad.usual"])
    assert ended.value.code == 0 and "relative difference" in capsys.readouterr().out


def test_damaged_cases_have_a_status_of_their_own(tmp_path, capsys):
    others = lambda folder, names: [
        n for n in names if folder == str(verify.files.SHIPPED) and n not in ("ia3", "index.json")
    ]
    copy = shutil.copytree(verify.files.SHIPPED, tmp_path / "cases", ignore=others)
    path = copy / "ia3" / "forward" / "usual" / "in.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(SystemExit) as ended:
        main(["verify", "--cases", str(copy), "ia3"])
    assert ended.value.code == 3 and "the file was changed" in capsys.readouterr().err


def test_strictly_only_the_usual_reading_counts(harness):
    chosen = verify.choose(ids=["dora.grad.*"])
    found = {r.id: r for r in verify.run(harness, chosen, limit=4.0, strict=True)}
    assert found["dora.grad.usual"].outcome == "PASS"
    assert (found["dora.grad.grad=full"].outcome, "usual reading" in found["dora.grad.grad=full"].reason) == (
        "N/A",
        True,
    )


WRONG_NORM = """
import numpy as np
from minipeft.conformance.own import Own

class Wrong(Own):
    def trace(self, case):
        return {k: v * (1 + 1e-4) if k >= "4" else v for k, v in super().trace(case).items()}

class Little(Own):
    def trace(self, case):
        return {k: v for k, v in super().trace(case).items() if k in ("0.base", "6.y")}

    def vjp(self, case):
        return {k: 2 * v if k == "B" else v for k, v in super().vjp(case).items()}

class Mute(Own):
    trace = property()
"""


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    (tmp_path / "wrong_norm.py").write_text(WRONG_NORM)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize(
    ("name", "code", "said"),
    in_turn(
        [("python:wrong_norm:Wrong", 1, "departs at 4.norm"), ("minipeft", 0, "the same in all 7 intermediates")],
        every=2,
    ),
)
def test_the_first_intermediate_that_departs(name, code, said, wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["verify", "bisect", name, "--case", "dora.forward.usual"])
    assert ended.value.code == code and said in capsys.readouterr().out


@pytest.mark.wide
def test_intermediates_that_are_not_traced(wrong):
    usual = verify.choose(ids=["lora.grad.usual"]).cases[0]
    rows, said = diff.bisect("python:wrong_norm:Little", usual)
    assert said == "the same in all 2 intermediates; departs at the result B; not traced: 1.h, 2.low, 5.merged"
    assert [r.name for r in rows if not r.same] == ["B"]
    with pytest.raises(Bad, match=r"expected intermediates of lora\.grad\.usual, traces none"):
        diff.bisect("python:wrong_norm:Mute", usual)
    with pytest.raises(Bad, match="minipeft traces no intermediate of it"):
        diff.bisect("minipeft", verify.choose(ids=["houlsby.forward.usual"]).cases[0])


@pytest.mark.wide
def test_names_of_intermediates_that_minipeft_has_not_are_told(harness, tmp_path, monkeypatch):
    text = WRONG_NORM.replace('("0.base", "6.y")', '("0.base", "6.y")} | {"norm": case.tensors["W"]')
    (tmp_path / "other_names.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    said = diff.bisect("python:other_names:Little", verify.choose(ids=["lora.forward.usual"]).cases[0])[1]
    assert said == "the same in all 2 intermediates; not traced: 1.h, 2.low, 5.merged; minipeft has no norm"


@pytest.mark.skipif(os.name == "nt", reason="the interpreter is a shell script")
@pytest.mark.parametrize(
    "words",
    in_turn(
        [
            "verify bisect NAME --case lora.forward.usual --python NAME=INTERPRETER",
            "verify -i NAME ia3 --check delta --python INTERPRETER",
            "verify -i minipeft -i NAME ia3 --check delta --python NAME=INTERPRETER",
            "verify diff minipeft NAME --case lora.forward.usual --python INTERPRETER",
        ],
        every=4,
    ),
)
def test_an_interpreter_that_has_no_minipeft(words, harness, tmp_path, monkeypatch, capsys):
    """One where only NumPy and the like are found: no .pth file is read, and no PYTHONPATH but that of its packages."""
    (tmp_path / "elsewhere.py").write_text(
        "import minipeft.conformance.own as own, sys\n"
        "class Elsewhere(own.Own):\n    def info(self): assert sys.flags.no_site; return super().info()\n"
    )
    packages = os.pathsep.join({str(Path(m.__file__).parents[1]) for m in (np, scipy, safetensors)})
    interpreter = tmp_path / "a python"
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}" exec "{sys.executable}" -S "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    there = {"NAME": "python:elsewhere:Elsewhere", "INTERPRETER": str(interpreter)}
    with pytest.raises(SystemExit) as ended:
        main([re.sub("NAME|INTERPRETER", lambda found: there[found[0]], word) for word in words.split()])
    assert ended.value.code == 0, capsys.readouterr()


def test_a_library_that_is_not_there_is_told_with_the_way_to_name_another_interpreter(harness, tmp_path, monkeypatch):
    (tmp_path / "needing.py").write_text("import there_is_none_such")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(verify.NotStarted, match=r"No module named 'there_is_none_such' \(--python PATH"):
        verify.run("python:needing:x", verify.choose(ids=["lora.forward.usual"]))


def test_what_has_the_shape_of_no_mutant_is_judged():
    """Codes of a block size that is another are of another shape: that a mutant has it is no error of the judge."""
    case = verify.choose(ids=["qlora.quantize.double_quant=False"]).cases[0]
    got = case.want | {"codes": case.want["codes"] ^ 1}
    result = Result("mine", "1", case.id, "SKIP")
    judged = verify.judge(case, got, result)
    (told,) = verify.diagnosed([judged], {case.id: verify.Failure(case, got, judged)})
    assert told.outcome == "FAIL"


@pytest.mark.parametrize(
    "given, said",
    [
        (None, "TypeError: expected forward to give a dict of arrays by their names, found NoneType"),
        ({1: 2.0}, "TypeError: expected forward to give a dict of arrays by their names, found keys 1"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (AssertionError(), "AssertionError: at test_verify.py, line "),
    ],
)
def test_what_an_object_does_wrong_is_one_line(given, said, tmp_path):
    class Wrong:
        def forward(self, case):
            if isinstance(given, Exception):
                raise given
            return given

    asked = dict(do="case", id="a", folder=str(verify.files.SHIPPED / "lora/forward/usual"), out=str(tmp_path / "out"))
    told = serve.answer(Wrong(), asked)
    assert told["status"] == "error" and told["reason"].startswith(said) and "\n" not in told["reason"]


@pytest.mark.wide
def test_the_field(harness, tmp_path, monkeypatch, capsys):
    """Environments that pip has nothing to do for, and a library that is wrong as it is known to be."""
    monkeypatch.setattr(field, "ENVIRONMENTS", {"one": field.Environment((harness,), ())})
    monkeypatch.setattr(field, "prepare", lambda folder, tell: {harness: sys.executable})
    known = [expect.Expectation("loha.forward.usual", "FAIL", "deviations.md#odd", "it is odd")]
    monkeypatch.setattr(expect, "of_harness", lambda peer: known if "odd" in peer else [])
    monkeypatch.setattr(verify, "choose", lambda: only)
    only = verify.Chosen(tuple(c for c in verify.files.load(methods=["loha"], checks=["forward", "grad"])), {})
    with pytest.raises(SystemExit) as ended:
        main(["verify", "field", str(tmp_path), "--into", str(tmp_path)])
    assert ended.value.code == 0, capsys.readouterr()
    assert "[deviations.md#odd](deviations.md#odd)" in (tmp_path / "field.md").read_text()
    assert 'href="deviations.md#odd"' in (tmp_path / "field.html").read_text()


@pytest.mark.wide
def test_the_plugin_and_the_strategies_in_a_project_of_its_own(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        textwrap.dedent("""
        import numpy as np
        from hypothesis import HealthCheck, Phase, given, settings
        from minipeft.conformance.strategies import agree, case

        def mine(x, W, b, A, B, scale):
            return x @ W.T + b + scale * (x @ A.T) @ B.T

        @settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
        @given(case(method="lora"))
        def test_right(c):
            if not c.config["lora_bias"]:
                scale = c.config["alpha"] / (np.sqrt(c.config["r"]) if c.config["rslora"] else c.config["r"])
                agree(c, y=mine(**c.tensors, scale=scale))

        @settings(max_examples=20, derandomize=True, phases=[Phase.generate])
        @given(case(method="lora"))
        def test_wrong(c):
            if not c.config["lora_bias"] and not c.config["rslora"]:
                agree(c, y=mine(**c.tensors, scale=c.config["alpha"]))
        """)
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", "minipeft.conformance.plugin", "--conformance", "minipeft",
             "--conformance-method", "ia3", "--conformance-require", "forward,files", "-p", "no:cacheprovider", "test_mine.py"]  # fmt: skip
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    cases = len(verify.choose(methods=["ia3"]).cases)
    assert f"1 failed, {cases + 2} passed" in done.stdout, done.stdout + done.stderr
    assert "alpha_undivided" in done.stdout and f"minipeft ia3: PASS {cases} of {cases}" in done.stdout


def test_the_protocol_over_a_pipe():
    """By hand, as a program in another language would see it from the other side."""
    case = verify.choose(ids=["lora.forward.usual"]).cases[0]
    asked = [
        dict(do="start", format=1),
        dict(do="case", folder=str(case.folder), out=os.devnull + "x"),
        dict(do="stop"),
    ]
    words = [sys.executable, "-m", "minipeft.conformance.serve", "minipeft.conformance.own:implementation"]
    done = subprocess.run(words[:], input="\n".join(map(json.dumps, asked[::2])), capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["name"] == "minipeft"
