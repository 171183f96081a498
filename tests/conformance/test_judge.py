"""The ten lines of docs/format.md, as judge.mjs has them, come to minipeft's verdicts on the same answers."""

import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minipeft.conformance import export, verify
from minipeft.conformance.new import skeleton
from minipeft.conformance.own import implementation
from minipeft.conformance.serve import answer
from minipeft.conformance.verdicts import grouped, verdict

METHODS = ["lora", "dora", "pissa", "qlora"]
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")

REPEATS = """
import json, shutil, sys
from pathlib import Path

for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "start":
        print((Path(sys.argv[1]) / "about.json").read_text(), flush=True)
    elif asked["do"] == "case":
        said, out = (Path(sys.argv[1]) / (asked["id"] + end) for end in (".json", ".safetensors"))
        told = dict(status="done") if out.exists() else dict(status="unsupported", reason="no answer")
        told = json.loads(said.read_text()) if said.exists() else told
        if out.exists():
            shutil.copy(out, asked["out"])
        print(json.dumps(told | dict(id=asked["id"])), flush=True)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "release"
    export.write(export.contents(methods=METHODS), folder)
    return folder


@pytest.fixture(scope="module")
def right(exported, tmp_path_factory):
    """A folder of minipeft's own answers."""
    folder = tmp_path_factory.mktemp("answers")
    about = implementation.info() | dict(methods=[*METHODS, "beyond"], readings={})
    (folder / "about.json").write_text(json.dumps(about))
    for case in verify.choose(exported / "cases").cases:
        out = folder / f"{case.id}.safetensors"
        told = answer(
            implementation, dict(do="case", id=case.id, folder=str(case.folder), out=str(out), dtype="float64")
        )
        if told["status"] != "done":
            (folder / f"{case.id}.json").write_text(json.dumps(told))
    return folder


def judge(*words):
    return subprocess.run(["node", *map(str, words)], capture_output=True, text=True, timeout=120)


def alike(exported, answers, tmp_path):
    """Both judge the same folder: the verdicts, and the cases that are wrong or in error."""
    done = judge(exported / "judge.mjs", exported / "cases", answers)
    assert not done.stderr
    lines = done.stdout.splitlines()
    (tmp_path / "repeats.py").write_text(REPEATS)
    name = f"exec:{shlex.join([sys.executable, '-S', str(tmp_path / 'repeats.py'), str(answers)])}"
    results = verify.run(name, verify.choose(exported / "cases"), jobs=1)
    mine = {f"{method} {verdict(some)}" for (method, _), some in grouped(results).items() if verdict(some).there}
    assert {line for line in lines if not line.startswith(" ")} == mine
    wrong = {(r.outcome, r.id) for r in results if r.outcome in ("FAIL", "ERROR")}
    told = {tuple(line.split(":")[0].split()) for line in lines if line.startswith(("  FAIL", "  ERROR"))}
    assert told == wrong and done.returncode == (1 if wrong else 0)
    return {r.id: r.outcome for r in results}


@pytest.mark.hf
def test_right_answers(exported, right, tmp_path):
    found = alike(exported, right, tmp_path)
    assert set(found.values()) == {"PASS"} and len(found) > 100


@pytest.mark.wide
def test_wrong_answers_each_in_a_way_of_its_own(exported, right, tmp_path):
    answers = shutil.copytree(right, tmp_path / "answers")

    def file(id_):
        return answers / f"{id_}.safetensors"

    def change(id_, f):
        save_file({k: np.ascontiguousarray(v) for k, v in f(load_file(file(id_))).items()}, file(id_))

    def say(id_, **told):
        (answers / f"{id_}.json").write_text(json.dumps(told))

    def each(f):
        return lambda held: {k: f(v) for k, v in held.items()}

    def one(f):
        """Of the first tensor, its first element."""

        def changed(held):
            v = next(iter(held.values())).copy()
            v.flat[0] = f(v.flat[0])
            return held | {next(iter(held)): v}

        return changed

    change("lora.forward.usual", one(lambda v: np.nan))
    change("lora.forward.rslora=True", one(lambda v: np.inf))
    change("lora.forward.other_sizes", one(lambda v: v * (1 + 1e-16)))  # still right
    change("lora.grad.usual", lambda held: {k: v for k, v in held.items() if k != "B"})
    change("lora.grad.rslora=True", each(lambda v: v.T))
    change("lora.delta.usual", each(lambda v: v.astype(np.float32)))
    change("lora.delta.other_sizes", one(lambda v: v + 1e-12))
    change("lora.merge_bfloat16.usual", one(lambda v: v + 1e-16))
    file("lora.train.sgd").write_bytes(b"")
    file("lora.train.adamw").write_bytes(file("lora.train.adamw").read_bytes()[:-8])
    file("lora.merge.usual").unlink()
    file("lora.embedding.forward").unlink()
    say("lora.embedding.forward", status="done")
    say("lora.combine.two", status="rejected", reason="no")
    say("lora.combine.identity", status="error", reason="broken")
    say("lora.load.missing", status="done")
    say("lora.load.plain", status="unsupported", reason="later")
    shutil.copy(file("lora.forward.usual"), file("lora.load.missing"))
    change("dora.init.usual", each(lambda v: v[:-1]))
    start = next(p.name.removesuffix(".safetensors") for p in sorted(answers.glob("pissa.start.*.safetensors")))
    change(start, one(lambda v: v + 1e-3))
    codes = next(p.name.removesuffix(".safetensors") for p in answers.glob("qlora.quantize.*.safetensors"))
    change(codes, lambda held: held | {"codes": held["codes"] ^ 1})
    found = alike(exported, answers, tmp_path)
    assert found["lora.forward.other_sizes"] == "PASS"
    assert found["lora.unmerge.usual"] == found["lora.load.unexpected"] == found["lora.merge.usual"] == "SKIP"
    assert found["lora.train.sgd"] == found["lora.train.adamw"] == found["lora.embedding.forward"] == "ERROR"
    failed = {k for k, v in found.items() if v == "FAIL"}
    assert {
        codes,
        start,
        "dora.init.usual",
        "lora.delta.usual",
        "lora.load.missing",
        "lora.combine.two",
    } <= failed


@pytest.mark.hf
def test_readings(exported, right, tmp_path):
    answers = shutil.copytree(right, tmp_path / "answers")
    seen = set()
    for reading in ("full", "*"):
        about = json.loads((right / "about.json").read_text()) | dict(readings={"dora": {"grad": reading}})
        (answers / "about.json").write_text(json.dumps(about))
        seen |= set(alike(exported, answers, tmp_path).values())
    assert seen == {"PASS", "READING", "N/A"}


@pytest.mark.hf
def test_float32(exported, right, tmp_path):
    answers = shutil.copytree(right, tmp_path / "answers")
    for path in answers.glob("*.safetensors"):
        held = load_file(path)
        save_file({k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in held.items()}, path)
    about = json.loads((right / "about.json").read_text()) | dict(dtypes=["float32"])
    (answers / "about.json").write_text(json.dumps(about))
    assert "PASS" in set(alike(exported, answers, tmp_path).values())


def test_nothing_and_what_cannot_be_judged(exported, tmp_path):
    done = judge(exported / "judge.mjs", exported / "cases", tmp_path / "empty")
    assert done.returncode == 1 and done.stdout == "nothing was judged\n"
    for words in (
        [],
        [tmp_path, tmp_path],
        [exported / "cases", tmp_path, "--"],
        [exported / "cases", tmp_path, "--", "/no/program"],
    ):
        done = judge(exported / "judge.mjs", *words)
        assert done.returncode == 2 and done.stderr.startswith("judge: ") and done.stderr.count("\n") == 1, done


@pytest.mark.hf
def test_a_program_is_asked(tmp_path):
    """The harness of the release itself, right; then one that says too much, nothing, something else, or ends."""
    export.write(export.contents(methods=["lora"], checks=["forward"]), tmp_path / "release")
    words = [tmp_path / "release" / "judge.mjs", tmp_path / "release" / "cases", tmp_path / "answers", "--", "node"]
    done = judge(*words, tmp_path / "release" / "harnesses" / "javascript" / "main.mjs")
    assert (done.stdout, done.returncode) == ("lora PASS 4 of 4\n", 0)
    skeleton("javascript", tmp_path / "mine")
    main = tmp_path / "mine" / "main.mjs"
    text, last = main.read_text(), "process.stdout.write(`${JSON.stringify(answer(line))}\\n`);"
    assert text.count(last) == 1
    case = "if (line.includes('\"case\"')) "
    for more, said in {
        "console.log('debug');": "3 answers to 2 questions", "process.exit(7);": "it ended with status 7", "continue;": "it ended with status 0",
        "{ console.log('{}'); continue; }": "the answer has not the id", "{ console.log('debug'); continue; }": "is not valid JSON",
    }.items():  # fmt: skip
        main.write_text(text.replace(last, f"{{ {case}{more} {last} }}"))
        done = judge(*words, main)
        lines = done.stdout.splitlines()
        assert done.returncode == 1 and lines[0] == "lora ERROR 0 of 4 (4 errors: forward)", done
        assert len(lines) == 5 and all(said in line for line in lines[1:]), (said, lines)


@pytest.mark.wide
def test_a_program_s_fresh_adapter_must_leave_the_model_as_it_is(tmp_path):
    export.write(export.contents(methods=["ia3"], checks=["forward", "init"]), tmp_path / "release")
    words = [tmp_path / "release" / "judge.mjs", tmp_path / "release" / "cases", tmp_path / "answers"]
    skeleton("javascript", tmp_path / "mine")
    main, methods = tmp_path / "mine" / "main.mjs", tmp_path / "mine" / "methods.mjs"
    most = "ia3 PASS 3 of 4 (1 not answered: forward)\n"  # the skeleton has no feed-forward
    assert judge(*words, "--", "node", main).stdout == most
    assert judge(*words).stdout == most  # what it gave lies there
    (tmp_path / "answers" / "ia3.init.usual.y.safetensors").unlink()
    done = judge(*words).stdout.splitlines()
    assert done[0] == most.strip() and "names and shapes alone" in done[1]
    text, right = methods.read_text(), "l: vector(W.rows, () => 1)"
    assert text.count(right) == 1
    methods.write_text(text.replace(right, "l: vector(W.rows, () => 1.001)"))
    done = judge(*words, "--", "node", main)
    assert done.returncode == 1 and "FAIL ia3.init.usual: a fresh adapter changes the model" in done.stdout
