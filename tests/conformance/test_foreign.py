"""An implementation in another language, written from docs/format.md alone, is judged through the protocol."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from minipeft.conformance import cases
from minipeft.conformance.languages import SKELETONS
from minipeft.conformance.places import PLACES
from minipeft.interop.peft.page import table
from minipeft.interop.peft.registry import specs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
PROGRAM = SKELETONS / "javascript" / "main.mjs"
METHODS = ("lora", "dora", "ia3")
IDS = [c["id"] for c in json.loads((cases.SHIPPED / "index.json").read_text())["cases"]]
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


class Talk:
    """A program that speaks the protocol, and what it answered to start."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.ask(do="start", format=cases.FORMAT)

    def ask(self, **what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"no answer to {what}; status {self.process.wait(10)}"
        answer = json.loads(line)
        assert answer.get("id") == what.get("id")
        return answer

    def stop(self):
        """Its exit status, and that nothing more was said."""
        rest, _ = self.process.communicate(json.dumps(dict(do="stop")) + "\n", timeout=20)
        assert not rest
        return self.process.returncode


def verdict(talk, case, out):
    """None if the answer is right, "unsupported" if that is what it said, else what is wrong with it."""
    dtype = talk.about["dtypes"][0]
    out.unlink(missing_ok=True)
    answer = talk.ask(do="case", id=case.id, folder=str(case.folder), out=str(out), dtype=dtype)
    if answer["status"] == "unsupported":
        assert answer["reason"]
        return "unsupported"
    if case.tolerance == "REJECT":
        return None if answer["status"] == "rejected" and answer["reason"] else f"a refusal is wanted, found {answer}"
    if answer["status"] != "done":
        return str(answer)
    got, unit = load_file(out), {"float64": 2.0**-53, "float32": 2.0**-24}[dtype]
    if case.tolerance == "DRAWN":
        for name, shape in case.options["shapes"].items():
            a = got[name]
            assert (
                a.shape == (case.options["times"], *shape)
                and a.dtype == dtype
                and len({r.tobytes() for r in a}) in (1, len(a))
            )
            for k, v in dict(
                mean=a.mean(), square=(a**2).mean(), kurtosis=(a**4).mean() / max((a**2).mean() ** 2, 1e-99)
            ).items():
                full = f"{name}.{k}"
                if full in case.want and not abs(v - case.want[full]) <= case.k * case.cond[full]:
                    return f"{full} is {v}, not {case.want[full]}"
        return None
    for name, want in case.want.items():
        if name not in got or got[name].shape != want.shape or got[name].dtype != dtype:
            return f"{name}: {got.get(name)}"
        if case.tolerance == "SHAPES":
            continue
        if case.tolerance in ("EXACT", "ROUND1"):
            if not np.array_equal(got[name], want):
                return f"{name} is not the same"
            continue
        ratio = float(abs(got[name] - want).max()) / (unit * case.cond[name])
        if not ratio <= case.k:
            return f"{name} is off by {ratio} u·cond"
    return None


def judged(command, methods, checks, out):
    """The verdicts on all cases of some methods and checks, by id."""
    talk = Talk(command)
    try:
        found = {c.id: verdict(talk, c, out) for c in cases.load(methods=methods, checks=checks)}
        assert talk.stop() == 0
    finally:
        talk.process.kill()
        talk.process.wait()
        talk.process.stdout.close()
    return found


@needs_node
@pytest.mark.parametrize("method", METHODS)
def test_javascript_passes_every_case_of_its_places(method, tmp_path):
    found = judged(["node", str(PROGRAM)], [method], None, tmp_path / "out.safetensors")
    assert len(found) >= 13
    elsewhere = {c.id for c in cases.load(methods=[method]) if c.place not in ("linear", "table")}
    assert {k: v for k, v in found.items() if v is not None} == dict.fromkeys(elsewhere, "unsupported")


@needs_node
def test_javascript_declares_what_it_has_not(tmp_path):
    talk = Talk(["node", str(PROGRAM)])
    assert tuple(talk.about["methods"]) == METHODS
    for case in (next(cases.load(methods=["loha"])), next(cases.load(methods=["houlsby"]))):
        assert verdict(talk, case, tmp_path / "out.safetensors") == "unsupported"
    usual = next(cases.load(methods=["lora"]))
    answer = talk.ask(do="case", id=usual.id, folder=str(usual.folder), out=str(tmp_path / "o"), dtype="float32")
    assert answer["status"] == "unsupported" and "float32" in answer["reason"]
    assert talk.ask(do="case", folder=str(tmp_path), out=str(tmp_path / "o"), dtype="float64")["status"] == "error"
    assert talk.stop() == 0


@needs_node
@pytest.mark.parametrize(
    ("right", "wrong", "check"),
    [
        ("alpha / (rslora ? Math.sqrt(r) : r)", "alpha / r", "forward"),
        ("throw new Rejected(`unexpected tensor ${key}`)", "continue", "load"),
        ("beta2 * v + (1 - beta2) * g * g", "beta2 * v + (1 - beta2) * g", "train"),
        ("minus(method.merged(given).W, given.W)", "method.merged(given).W", "delta"),
    ],
)
def test_a_broken_copy_fails(right, wrong, check, tmp_path):
    copy = shutil.copytree(PROGRAM.parent, tmp_path / "copy") / PROGRAM.name
    text = copy.read_text(encoding="utf-8")
    assert text.count(right) == 1
    copy.write_text(text.replace(right, wrong), encoding="utf-8")
    assert any(judged(["node", str(copy)], ["lora"], [check], tmp_path / "out.safetensors").values())


def test_the_example_uses_nothing_but_node():
    for path in PROGRAM.parent.glob("*.mjs"):
        used = re.findall(r'from "([^"]+)"', path.read_text(encoding="utf-8"))
        assert all(u.startswith(("node:", "./")) for u in used), path
        assert "want.safetensors" not in path.read_text(encoding="utf-8"), path


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_tells_every_ask_place_role_class_and_field():
    for ask, about in cases.ASKS.items():
        assert f"| `{ask}` | {about} |" in PAGE
    for place in PLACES.values():
        assert f"| `{place.name}` |" in PAGE and place.about in PAGE, place.name
    known = cases.SCHEMA["properties"]
    roles = known["tensors"]["additionalProperties"]["properties"]["role"]["enum"]
    for name in (*known, *roles, *cases.CLASSES, *("source", "equation", "method", "check", "variant", "place")):
        assert f"`{name}`" in PAGE, name


def test_the_page_tells_every_tensor_of_a_file():
    methods = {i.split(".")[0] for i in IDS if i.endswith(".load.plain")}
    for method in methods:
        assert re.search(rf"^\| ([\w, ]+, )?{method}(,| \|)", PAGE, re.M), method
        folder = cases.SHIPPED / method / "load" / "plain" / "adapter" / "adapter_model.safetensors"
        for key in load_file(folder):
            named = re.escape(key.removeprefix("base_model.model.layer."))
            counted = re.sub(r"\\\.\d+(?=\\\.|$)", r"(\\.(0|\\{\\w\\}))?", named)  # of several
            assert re.search(f"`{counted}`", PAGE), (method, key)
    assert methods <= set(specs())


def test_the_table_of_files_is_the_one_that_is_generated():
    assert table() in PAGE, "python -m minipeft.interop.peft.page"


def test_the_page_tells_the_four_bit_codebook():
    from minipeft.quantize import NF4_CODEBOOK

    told = PAGE.split("the codebook t")[1].split("A block's")[0].split(":", 1)[1].replace("−", "-").strip().rstrip(".")
    assert np.array_equal(np.array([float(t) for t in told.split(",")], np.float32), NF4_CODEBOOK)


def test_the_page_tells_how_the_tiny_tier_is_written():
    tiny = json.loads((cases.SHIPPED / "tiny.json").read_text(encoding="utf-8"))
    assert tiny["format"] == cases.FORMAT
    for case in tiny["cases"]:
        for name in case:
            assert f'"{name}"' in PAGE.split("## 9.")[1].split("## 10.")[0], name
        assert all(float.fromhex(v) is not None for t in case["tensors"].values() for v in t["values"])
