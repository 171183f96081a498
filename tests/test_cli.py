"""The command line: what it prints, its exit codes, and that a user's mistake is one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minipeft import attach, load, load_peft, save_adapter, save_peft
from minipeft.checkpoints import with_head
from minipeft.cli import main
from minipeft.conformance import tiny
from minipeft.data import BASE
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.run import Adapted
from minipeft.run import merge as fold

PEFT_CASES = Path(__file__).parent / "data" / "peft" / "llama"


def call(capsys, *words):
    """Exit status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in words])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def mistake(capsys, *words):
    """The one line that a mistake is answered with."""
    status, _, err = call(capsys, *words)
    assert status == 2
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("minipeft: ") and "Traceback" not in err
    return lines[0]


def adapter(folder, save=save_adapter, method=LoRA(r=2)):
    model = load(BASE)
    adapted = attach(model, method, targets="q_proj")
    rng = np.random.default_rng(0)
    moved = {k: v + rng.standard_normal(v.shape).astype(v.dtype) for k, v in adapted.theta.items()}
    save(adapted.replace(moved), folder)
    return adapted.replace(moved)


def test_list(capsys):
    status, out, _ = call(capsys, "list", "--json")
    found = json.loads(out)
    load_methods()
    assert status == 0 and {m["name"] for m in found} >= {"lora", "ia3", "prefix_tuning"}
    assert {m["family"] for m in found if m["file"].startswith("minipeft/")} == {
        "lowrank", "structured", "orthogonal", "selective", "bottleneck", "scaling", "prompt", "routing"
    }  # fmt: skip
    status, out, _ = call(capsys, "list")
    assert status == 0 and all(name in out for name in METHODS)


def test_show(capsys):
    status, out, _ = call(capsys, "show", "dora")
    assert status == 0 and "W' = diag(m / ‖V‖) V" in out and "grad = 'detached'" in out and "dora.py" in out
    status, out, _ = call(capsys, "show", "dora", "--code")
    assert status == 0 and "class DoRA(LoRA)" in out


def test_version_and_help(capsys):
    assert call(capsys, "--version")[1].startswith("minipeft 0.")
    for command in ["list", "show", "compare", "train", "merge", "convert", "replay", "check", "bench"]:
        status, out, _ = call(capsys, command, "--help")
        assert status == 0 and "Example" in out, command


def test_check(capsys):
    status, out, _ = call(capsys, "check", "ia3", "--family", "llama", "--json")
    verdicts = json.loads(out)["ia3"]
    assert status == 0 and {v["outcome"] for v in verdicts} == {"pass"} and len(verdicts) == 10


def test_check_fails_with_1(capsys, monkeypatch):
    from minipeft.conformance import laws

    def broken(case):
        raise laws.Broken("planted")

    monkeypatch.setitem(laws.LAWS, "size", broken)
    status, out, _ = call(capsys, "check", "ia3", "--family", "llama")
    assert status == 1 and "ia3, llama, size: planted" in out


def test_train_then_merge_then_convert(capsys, tmp_path):
    words = ["train", "lora", tmp_path / "a", "--set", "r=2", "--steps", "2"]
    status, out, _ = call(capsys, *words)
    assert status == 0 and "accuracy" in out
    before = (tmp_path / "a" / "adapter.safetensors").read_bytes()
    assert call(capsys, *words)[0] == 0  # ended already: nothing changes
    assert (tmp_path / "a" / "adapter.safetensors").read_bytes() == before


def test_merge(capsys, tmp_path):
    adapted = adapter(tmp_path / "a")
    status, _, _ = call(capsys, "merge", BASE, tmp_path / "a", tmp_path / "merged")
    merged, batch = load(tmp_path / "merged"), tiny.example(adapted.model)
    assert status == 0 and (tmp_path / "merged" / "tokenizer.json").exists()
    half = fold(adapted).astype(np.float16).astype(np.float32)  # as the base's file has it
    np.testing.assert_array_equal(Adapted(merged).logits(batch), Adapted(half).logits(batch))


def test_a_base_in_bfloat16(capsys, tmp_path):
    half = attach(load(BASE, "bfloat16"), LoRA(r=2), targets="q_proj")
    save_adapter(half, tmp_path / "a")
    assert "another base" in mistake(capsys, "convert", BASE, tmp_path / "a", tmp_path / "b", "--dtype", "float32")
    status, out, _ = call(capsys, "merge", BASE, tmp_path / "a", tmp_path / "b", "--dtype", "bfloat16")
    assert status == 0 and load(tmp_path / "b", "bfloat16").digest() == half.model.digest()
    assert (tmp_path / "b" / "model.safetensors").stat().st_size < 2.1 * half.model.size
    words = ["train", "lora", tmp_path / "t", "--set", "r=2", "--steps", "1", "--dtype", "bfloat16"]
    assert call(capsys, *words)[0] == 0
    about = json.loads((tmp_path / "t" / "adapter.json").read_text())
    labels = next(shape[0] for site, shape, _ in about["at"] if site == "score.weight")
    assert about["base"] == with_head(load(BASE, "bfloat16"), "classify", labels).digest(without=["score.weight"])


def test_convert_both_ways(capsys, tmp_path):
    adapted = adapter(tmp_path / "ours")
    assert call(capsys, "convert", BASE, tmp_path / "ours", tmp_path / "theirs")[0] == 0
    assert json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert call(capsys, "convert", BASE, tmp_path / "theirs", tmp_path / "again")[0] == 0
    for k, v in load_peft(load(BASE), tmp_path / "theirs").theta.items():
        np.testing.assert_array_equal(v, adapted.theta[k])
    ours, again = ((tmp_path / n / "adapter.safetensors").read_bytes() for n in ("ours", "again"))
    assert len(ours) == len(again)


def test_replay(capsys):
    status, out, _ = call(capsys, "replay", "--base", PEFT_CASES / "base", PEFT_CASES / "lora", "--json")
    (report,) = json.loads(out)
    assert status == 0 and report["case"] == "lora"
    status, out, _ = call(capsys, "replay", "--base", PEFT_CASES / "base", PEFT_CASES / "lora", PEFT_CASES / "dora")
    assert status == 0 and "2 of 2 cases agree" in out


# --- mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "lroa"], "did you mean lora"),
        (["check", "lroa"], "did you mean lora"),
        (["check", "lora", "--family", "lama"], "did you mean llama"),
        (["check", "lora", "--dtype", "float16"], "expected float64 or float32"),
        (["compare", "--dtype", "bfloat"], "did you mean bfloat16"),
        (["compare", "lroa"], "did you mean lora"),
        (["compare", "--base", "/no/such"], "/no/such: no such folder"),
        (["compare", "--data", "/no/such.csv"], "/no/such.csv: no such file"),
        (["train", "lora", "out", "--set", "rr=3"], "lora has no setting 'rr' (did you mean r"),
        (["train", "lora", "out", "--set", "r=many"], "expected int like 8, found str"),
        (["train", "lora", "out", "--set", "r=0"], "r must be at least 1, found 0"),
        (["train", "lora", "out", "--optimiser", "adam"], "did you mean adamw"),
        (["train", "lora", "out", "--schedule", "cosin"], "did you mean cosine"),
        (["merge", "/no/such", "a", "b"], "/no/such: no such folder"),
        (["convert", BASE, "/no/such", "b"], "/no/such: no such folder"),
        (["replay", "--base", "/no/such", "x"], "/no/such: no such folder"),
        (["bench", "--size", "XXL"], "expected one of S, M, L"),
        (["bench", "--method", "lroa"], "did you mean lora"),
        (["bench", "--against", "pft"], "did you mean peft"),
        (["--backend", "numpi", "list"], "expected one of numpy, cupy"),
    ],
    ids=lambda x: " ".join(map(str, x)) if isinstance(x, list) else "",
)
def test_a_mistake_is_one_line(capsys, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    assert says in mistake(capsys, *words)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_an_adapter_of_another_base(capsys, tmp_path):
    adapter(tmp_path / "a")
    assert "another base" in mistake(capsys, "merge", PEFT_CASES / "base", tmp_path / "a", tmp_path / "b")


def test_a_corrupt_adapter(capsys, tmp_path):
    adapter(tmp_path / "a")
    file = tmp_path / "a" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "adapter.safetensors" in mistake(capsys, "merge", BASE, tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_folder_that_is_no_adapter(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert "expected adapter.json" in mistake(capsys, "merge", BASE, tmp_path, tmp_path / "b")


def test_what_does_not_merge(capsys, tmp_path):
    from minipeft.methods.prompt.prompt_tuning import PromptTuning

    save_adapter(attach(load(BASE), PromptTuning(p=2)), tmp_path / "a")
    assert "does not merge" in mistake(capsys, "merge", BASE, tmp_path / "a", tmp_path / "b")


def test_peft_cannot_have_it(capsys, tmp_path):
    from minipeft.methods.bottleneck.houlsby import Houlsby

    save_adapter(attach(load(BASE), Houlsby()), tmp_path / "a")
    assert "houlsby" in mistake(capsys, "convert", BASE, tmp_path / "a", tmp_path / "b")


def test_a_place_that_cannot_be_written(capsys, tmp_path):
    adapter(tmp_path / "a", save_peft)
    (tmp_path / "taken").write_text("a file")
    assert "taken" in mistake(capsys, "convert", BASE, tmp_path / "a", tmp_path / "taken" / "b")


def test_starting_is_cheap():
    """Neither the package nor the command line loads NumPy or SciPy before there is work for them."""
    code = "import sys, minipeft, minipeft.cli; print([m for m in ('numpy', 'scipy', 'rich.table', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
