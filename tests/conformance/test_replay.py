"""Recorded cases of PEFT (tests/record/record_peft.py) are computed again, and a wrong number is seen."""

import json
import re
import shutil

import numpy as np
import pytest
from recorded import ANEW, CASES, COARSE, ROOT
from sampled import one_each

from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors, write_tensors
from minipeft.cli import main
from minipeft.conformance.replay import replay
from minipeft.interop.peft.writing import save_peft, to_peft_tensors
from minipeft.method import METHODS, load_methods
from minipeft.model.batch import batch

load_methods()


@pytest.fixture(scope="module")
def bases():
    return {p.name: load(p / "base", np.float64) for p in ROOT.iterdir()}


def method(case):
    """As the case's name begins with it."""
    return case.split("/")[1].split("-")[0].split("_")[0]


@pytest.mark.parametrize("case", one_each(CASES, method))
def test_agrees_with_what_peft_computed(case, bases):
    report = replay(bases[case.split("/")[0]], ROOT / case)
    assert report.agrees(strict=case not in COARSE.keys() | ANEW), report
    assert report.of("logits") and report.of("loss") and report.of("grad")


def test_what_is_listed_as_coarse_is_coarse(bases):
    for case in COARSE:
        assert not replay(bases[case.split("/")[0]], ROOT / case).agrees(strict=True)


@pytest.mark.parametrize(
    ("case", "key"),
    [("llama/dora", "lora_magnitude_vector"), ("llama/loha", "hada_w1_b"), ("gpt2/prefix-tuning", "prompt")],
)
def test_an_adapter_off_by_a_millionth_is_seen(case, key, bases, tmp_path):
    shutil.copytree(ROOT / case, tmp_path / "case")
    path = tmp_path / "case" / "adapter" / "adapter_model.safetensors"
    tensors = read_tensors(path)
    name = next(k for k in tensors if key in k)
    tensors[name] = (tensors[name].astype(np.float64) * (1 + 1e-6)).astype(np.float32)
    write_tensors(path, tensors)
    report = replay(bases[case.split("/")[0]], tmp_path / "case")
    assert not report.agrees(strict=True)
    assert report.worst is not None and report.worst.outcome != "equal"


@pytest.mark.parametrize("what", ["logits", "loss", "grad::"])
def test_every_expected_tensor_counts(what, bases, tmp_path):
    shutil.copytree(ROOT / "llama/lora", tmp_path / "case")
    path = tmp_path / "case" / "expected.safetensors"
    expected = read_tensors(path)
    name = next(k for k in expected if k.startswith(what))
    expected[name] = expected[name] + 1e-4 * np.abs(expected[name]).max()
    write_tensors(path, expected)
    report = replay(bases["llama"], tmp_path / "case")
    assert not report.agrees() and report.worst.name == name


@pytest.mark.parametrize(("size", "agrees"), [(0.0, True), (1e-17, True), (1e-13, False)])
def test_a_gradient_that_cancels_is_a_rounding_of_those_beside_it(size, agrees, bases, tmp_path):
    """Softmax does not see a key's bias."""
    shutil.copytree(ROOT / "bert-cls/lora-bias-all", tmp_path / "case")
    path = tmp_path / "case" / "expected.safetensors"
    expected = read_tensors(path)
    name = next(k for k in expected if k.endswith("0.attention.self.key.bias"))
    write_tensors(path, expected | {name: np.full_like(expected[name], size)})
    assert replay(bases["bert-cls"], tmp_path / "case").agrees(strict=True) is agrees


def test_a_bias_that_has_two_names_has_one_gradient(bases, tmp_path):
    """The one of BERT's head, which its decoder has too: PEFT stores both."""
    adapted = attach(bases["found-bertmlm"], METHODS["lora"](r=2), targets="attn.q.weight", bias="all")
    save_peft(adapted, tmp_path / "adapter")
    ids = np.array([[5, 9, 3, 7]])
    loss, grads = adapted.value_and_grad(batch(input_ids=ids, labels=ids))
    found = to_peft_tensors(adapted, adapted.adapters[0], {k.split("/", 1)[1]: g for k, g in grads.items()})
    expected = {f"grad::{k}": g for k, g in found.items()} | dict(input_ids=ids, labels=ids, loss=np.asarray(loss))
    start = "grad::base_model.model.cls.predictions."
    for factor in (1.0, 1.001):
        other = {f"{start}decoder.bias": factor * expected[f"{start}bias"]}
        write_tensors(tmp_path / "expected.safetensors", expected | other)
        assert replay(bases["found-bertmlm"], tmp_path).agrees(strict=True) is (factor == 1.0)


def test_gradients_may_have_the_names_of_the_model_in_training(bases, tmp_path):
    shutil.copytree(ROOT / "llama/lora", tmp_path / "case")
    path = tmp_path / "case" / "expected.safetensors"
    named = {re.sub(r"(^grad::.*lora_[AB])", r"\1.default", k): a for k, a in read_tensors(path).items()}
    assert any(".default." in k for k in named)
    write_tensors(path, named)
    assert replay(bases["llama"], tmp_path / "case").agrees(strict=True)


def test_a_gradient_of_the_wrong_tensor_is_reported(bases, tmp_path):
    shutil.copytree(ROOT / "llama/lora", tmp_path / "case")
    path = tmp_path / "case" / "expected.safetensors"
    expected = read_tensors(path)
    name = next(k for k in expected if k.startswith("grad::"))
    write_tensors(path, {k: v for k, v in expected.items() if k != name})
    assert f"lacks {name}" in replay(bases["llama"], tmp_path / "case").problem
    write_tensors(path, expected | {"grad::nothing": expected[name]})
    assert "grad::nothing is no trained tensor" in replay(bases["llama"], tmp_path / "case").problem


def run(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in words])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_command_line(capsys, tmp_path):
    good, missing = ROOT / "gpt2/lora-gpt2", tmp_path / "none"
    code, out, _ = run(["replay", "--base", ROOT / "gpt2/base", good, ROOT / "gpt2/dora-gpt2"], capsys)
    assert code == 0 and "2 of 2 cases agree" in out
    code, out, _ = run(["replay", "--base", ROOT / "gpt2/base", "--json", "-", good, missing], capsys)
    first, second = json.loads(out)
    assert code == 1 and first["agrees"] and not second["agrees"] and str(missing) in second["problem"]
    assert {t["name"].split("::")[0] for t in first["tensors"]} == {"logits", "loss", "grad"}
    code, _, err = run(["replay", "--base", missing, good], capsys)
    assert code == 2 and str(missing) in err and "Traceback" not in err


def test_an_adapter_of_another_base_is_one_line(bases):
    report = replay(bases["gpt2"], ROOT / "llama/lora")
    assert "belongs to another base" in report.problem and "\n" not in report.problem


def test_an_adapter_is_no_case_and_several_are_none(bases, tmp_path):
    assert "expected a case, a folder with adapter/" in replay(bases["llama"], ROOT / "llama/lora/adapter").problem
    for name in ("first", "second"):
        shutil.copytree(ROOT / "llama/lora/adapter", tmp_path / "adapter" / name)
    assert "found folders of 2: first, second" in replay(bases["llama"], tmp_path).problem
