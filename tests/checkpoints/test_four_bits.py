"""Bases in four bits: files of bitsandbytes, read as the numbers that they stand for, and bases that `load` holds so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from computed import held, ratios

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import QUANTISED, load, save_model
from minipeft.checkpoints.files import read_tensors, write_tensors
from minipeft.engine.weight import form, quantised
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.model.batch import batch
from minipeft.quantize import FourBits, quantize

ROOT = Path(__file__).parents[1] / "data" / "four_bits"
load_methods()
BASES = ROOT.parent / "bases"


def recorded(name):
    found = read_tensors(ROOT / name / "expected.safetensors")
    given = {k: v for k, v in found.items() if k not in ("logits", "loss") and not k.startswith("grad::")}
    return given, {k: v for k, v in found.items() if k not in given}


@pytest.mark.parametrize("name", ["llama-double", "gpt2-nf4", "bert-fp4"])
def test_a_file_of_bitsandbytes_computes_what_transformers_computes_with_it(name):
    """Values are rounded to the type of the base that was quantised: bfloat16 in the first, float16 in the last."""
    given, want = recorded(name)
    model = load(ROOT / name, np.float64)
    assert {W.code for W in model.params.values() if isinstance(W, FourBits)} == {"fp4" if "fp4" in name else "nf4"}
    assert held(ratios(model, given, want))


def test_the_rounding_matters():
    given, want = recorded("llama-double")
    import dataclasses

    model = load(ROOT / "llama-double", np.float64)
    unrounded = {
        k: dataclasses.replace(W, rounds="") if isinstance(W, FourBits) else W for k, W in model.params.items()
    }
    assert not held(ratios(dataclasses.replace(model, params=unrounded), given, want))


@pytest.mark.parametrize("name", QUANTISED)
def test_a_base_is_loaded_into_few_bits(name):
    """The linears of the layers, and neither the tables nor the head; each as `quantize` has it."""
    plain, model = load(BASES / "llama"), load(BASES / "llama", name)
    held_so = {k for k, W in model.params.items() if quantised(W)}
    assert {form(model.params[k]) for k in held_so} == {name}
    assert held_so == {k for k in plain.params if ".attn." in k or ".mlp." in k} - {
        k for k in plain.params if "norm" in k
    }
    for k in held_so:
        want = quantize(plain.params[k], double=name.endswith("double"), code=name.partition("-")[0]).dequantize()
        np.testing.assert_array_equal(model.params[k].dequantize(), want)
    assert model.dtype == np.float32


def test_an_adapter_trains_on_it_as_on_the_numbers_it_stands_for():
    import dataclasses

    model = load(BASES / "llama", "nf4").astype(np.float64)
    wide = {k: W.dequantize() if isinstance(W, FourBits) else W for k, W in model.params.items()}
    asked = batch(input_ids=[[5, 9, 3, 8]], labels=[[5, 9, 3, 8]])
    outs = []
    for base in (model, dataclasses.replace(model, params=wide)):
        adapted = attach(base, METHODS["lora"](r=2))
        theta = {k: v + 0.1 * np.random.default_rng(len(k)).standard_normal(v.shape) for k, v in adapted.theta.items()}
        outs.append(adapted.replace(theta).forward(asked).logits)
    np.testing.assert_allclose(outs[0], outs[1], rtol=0, atol=1e-13)


def test_it_is_written_as_numbers_and_read_back(tmp_path):
    model = load(ROOT / "gpt2-nf4")
    save_model(model, tmp_path, dict(model.config))
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    asked = batch(input_ids=[[5, 9, 3]])
    np.testing.assert_array_equal(*(Adapted(m).forward(asked).logits for m in (model, load(tmp_path))))


def test_what_does_not_fit_is_one_line(tmp_path):
    def broken(change, **config):
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
        shutil.copytree(ROOT / "llama-double", tmp_path / "base")
        tensors = read_tensors(tmp_path / "base" / "model.safetensors")
        change(tensors)
        write_tensors(tmp_path / "base" / "model.safetensors", tensors)
        place = tmp_path / "base" / "config.json"
        known = json.loads(place.read_text())
        known["quantization_config"] |= config
        place.write_text(json.dumps(known))
        return tmp_path / "base"

    q = "model.layers.0.self_attn.q_proj.weight"
    state = f"{q}.quant_state.bitsandbytes__nf4"
    changes = {
        "lacks 'absmax'": lambda t: t.pop(f"{q}.absmax"),
        "absmax of shape": lambda t: t.update({f"{q}.absmax": t[f"{q}.absmax"][:-1]}),
        "bytes": lambda t: t.pop(state),
        "lacks 'shape'": lambda t: t.update({state: np.frombuffer(b"{}", np.uint8)}),
        "Expecting": lambda t: t.update({state: np.frombuffer(b"{", np.uint8)}),
        "16 codes": lambda t: t.update({f"{q}.quant_map": np.zeros(4, np.float32)}),
        "table of shape": lambda t: t.update({f"{q}.nested_quant_map": np.zeros(16, np.float32)}),
        "codes of shape": lambda t: t.update({q: t[q][:-1]}),
    }
    for message, change in changes.items():
        with pytest.raises(Bad, match=message) as why:
            load(broken(change))
        assert "\n" not in str(why.value)
    for config, message in ((dict(load_in_8bit=True), "eight bits"), (dict(quant_method="gptq"), "gptq")):
        with pytest.raises(Bad, match=message):
            load(broken(lambda t: None, **config))
