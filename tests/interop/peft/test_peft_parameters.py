"""LoRA on parameters by their own names: which they are, what PEFT has there, and what is written again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors, write_json, write_tensors
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft

ROOT = Path(__file__).parents[2] / "data" / "peft"


@pytest.fixture(scope="module")
def bases():
    return {name: load(ROOT / name / "base", np.float64) for name in ("llama", "gpt2", "t5", "vit")}


def changed(tmp_path, case, **fields):
    """A recorded adapter with other fields."""
    folder = tmp_path / "a"
    shutil.copytree(ROOT / case / "adapter", folder)
    file = folder / "adapter_config.json"
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | fields)
    return folder


def test_each_is_one_of_our_sites(bases):
    adapter = load_peft(bases["gpt2"], ROOT / "gpt2/lora-parameters/adapter").adapters[0]
    stored = read_tensors(ROOT / "gpt2/lora-parameters/adapter/adapter_model.safetensors")
    turned = {k.rpartition("transformer.")[2]: a for k, a in stored.items()}
    site = "layers.1.mlp.up.weight"  # stored as (in, out) there
    np.testing.assert_array_equal(adapter.arrays[f"{site}:A"], turned["h.1.mlp.c_fc.lora_B.weight"].T)
    np.testing.assert_array_equal(adapter.arrays[f"{site}:B"], turned["h.1.mlp.c_fc.lora_A.weight"].T)
    np.testing.assert_array_equal(adapter.arrays["embed.tokens.weight:B"], turned["wte.lora_B.weight"])
    at = load_peft(bases["llama"], ROOT / "llama/lora-parameters/adapter").adapters[0].at
    gate = [at[f"layers.{n}.mlp.gate.weight"] for n in (0, 1)]
    assert [(m.r, m.alpha) for m in gate] == [(3, 4.0), (3, 5.0)]  # a pattern's key ends the parameter's name
    assert at["embed.tokens.weight"].r == 2 and "layers.0.attn.q.weight" not in at


@pytest.mark.parametrize("case", ["llama/lora-parameters", "gpt2/lora-parameters"])
def test_written_as_it_was_read(case, bases, tmp_path):
    save_peft(load_peft(bases[case.split("/")[0]], ROOT / case / "adapter"), tmp_path)
    was = json.loads((ROOT / case / "adapter/adapter_config.json").read_text(encoding="utf-8"))
    now = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert now["fan_in_fan_out"] is was["fan_in_fan_out"] is False
    ends = tuple(f".{name}" for name in was["target_parameters"])
    assert all(f".{name}".endswith(ends) for name in now["target_parameters"])
    assert {k.rpartition(".lora_")[0] for k in read_tensors(tmp_path / "adapter_model.safetensors")} >= {
        f"base_model.model.{name.removesuffix('.weight')}" for name in now["target_parameters"]
    }


@pytest.mark.parametrize(
    ("case", "fields", "says"),
    [
        ("llama/lora", dict(target_parameters=["experts.gate_up_proj"]),
         r"'experts.gate_up_proj' names nothing in this llama base.*; its matrices are .*mlp.gate_proj.weight, .*"),
        ("llama/lora", dict(target_parameters=["gate_prj.weight"]), r"'gate_prj.weight' names nothing .* \(did you mean .*gate_proj.weight"),
        ("llama/lora", dict(target_parameters=["norm.weight"]), r"'norm.weight': expected a matrix, found model.norm.weight of shape \(24,\)"),
        ("llama/lora", dict(target_parameters=["q_proj.weight"]),
         "'q_proj.weight' is in a module that target_modules names too, model.layers.0.self_attn.q_proj.weight"),
        ("llama/lora", dict(target_parameters=["up_proj.weight"]), "2 target modules have no tensors, the first model.layers.0.mlp.up_proj"),
        ("llama/lora", dict(target_parameters="up_proj.weight"), "target_parameters: expected a list of names, found 'up_proj.weight'"),
        ("llama/lora-parameters", dict(target_parameters=None), "and are no target_modules|lacks"),
        ("vit/lora-vit", dict(target_parameters=["position_embeddings"]), r"expected a matrix, found .*position_embeddings of shape \(1, "),
        ("t5/lora-t5", dict(target_parameters=["shared.weight"]), "'shared.weight': in transformers the stacks look tokens up in tables"),
        ("llama/lora-parameters", dict(lora_dropout=0.1), "target_parameters beside lora_dropout: PEFT adapts parameters by plain LoRA alone"),
        ("llama/lora-parameters", dict(use_dora=True), "target_parameters beside use_dora: PEFT adapts"),
        ("llama/lora-parameters", dict(lora_bias=True), "target_parameters beside lora_bias"),
        ("llama/lora-parameters", dict(fan_in_fan_out=True), "target_parameters beside fan_in_fan_out"),
        ("llama/lora-parameters", dict(init_lora_weights="mica"), "target_parameters beside init_lora_weights='mica'"),
        ("llama/adalora", dict(target_parameters=["up_proj.weight"]), "target_parameters is not supported for ADALORA: PEFT itself fails"),
    ],
)  # fmt: skip
def test_refused(case, fields, says, bases, tmp_path):
    with pytest.raises(Bad, match=f"^[^\n]*({says})[^\n]*$"):
        load_peft(bases[case.split("/")[0]], changed(tmp_path, case, **fields))


def test_factors_that_change_places_do_not_fit(bases, tmp_path):
    folder = changed(tmp_path, "gpt2/lora-parameters")
    file = folder / "adapter_model.safetensors"
    key = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"
    found = read_tensors(file)
    A, B = found[key.format("A")], found[key.format("B")]
    write_tensors(
        file, found | {key.format("A"): np.ascontiguousarray(B.T), key.format("B"): np.ascontiguousarray(A.T)}
    )
    with pytest.raises(Bad, match=r"c_attn.lora_[AB].weight as [AB]: expected shape"):
        load_peft(bases["gpt2"], folder)


def test_not_written_beside_what_peft_turns_round(bases, tmp_path):
    adapted = load_peft(bases["gpt2"], ROOT / "gpt2/lora-parameters/adapter")
    adapted.adapters[0].options["parameters"].remove("layers.1.mlp.up.weight")
    with pytest.raises(
        Bad, match=r"PEFT adapts no parameters beside transformer[^\n]*c_fc, which needs fan_in_fan_out"
    ):
        save_peft(adapted, tmp_path / "out")
    assert not (tmp_path / "out").exists()
