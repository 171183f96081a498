"""Modules that PEFT saves whole beside a prompt: their keys have one "model." less, and a token table among them is not looked up."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors, write_json, write_tensors
from minipeft.conformance.replay import replay
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.method import METHODS, load_methods
from minipeft.model.batch import batch

load_methods()
ROOT = Path(__file__).parents[2] / "data" / "peft"
GIVEN = batch(input_ids=np.array([[5, 9, 3, 17], [8, 30, 4, 11]]))
PROMPTS = ["prompt_tuning", "prefix_tuning", "cartridge", "p_tuning"]
TABLES = {
    "llama": "base_model.model.embed_tokens.weight",
    "bert-cls": "base_model.bert.embeddings.word_embeddings.weight",
}


@pytest.fixture(scope="module")
def bases():
    return {name: load(ROOT / name / "base", np.float64) for name in TABLES}


def moved(adapted):
    rng = np.random.default_rng(0)
    return adapted.replace({k: v + 0.2 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def changed(folder, tensors, **fields):
    file = folder / "adapter_config.json"
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | fields)
    weights = folder / "adapter_model.safetensors"
    write_tensors(weights, read_tensors(weights) | tensors)


@pytest.mark.parametrize("name", PROMPTS)
def test_modules_beside_a_prompt(name, bases, tmp_path):
    """Named in whole, as nothing is left of the names where a "model." is taken away with the root."""
    own = moved(attach(bases["llama"], METHODS[name](p=3), train_whole=["model.layers.0.mlp.up_proj", "lm_head"]))
    save_peft(own, tmp_path)
    assert "base_model.model.layers.0.mlp.up_proj.weight" in read_tensors(tmp_path / "adapter_model.safetensors")
    again = load_peft(bases["llama"], tmp_path)
    np.testing.assert_allclose(again.logits(GIVEN), own.logits(GIVEN), rtol=0, atol=1e-12)
    whole = {k for k in own.adapters[0].trained if k.endswith(":W1")}
    assert len(whole) == 3 and whole <= again.adapters[0].trained


def test_their_gradients_are_replayed_under_their_keys(bases, tmp_path):
    own = moved(attach(bases["llama"], METHODS["cartridge"](p=3), train_whole=["model.layers.0.mlp.up_proj"]))
    save_peft(own, tmp_path / "adapter")
    labelled = GIVEN.having(labels=GIVEN.input_ids)
    loss, grads = own.value_and_grad(labelled)
    up = "base_model.model.layers.0.mlp.up_proj"
    given = dict(input_ids=GIVEN.input_ids, labels=GIVEN.input_ids, loss=np.asarray(loss))
    prompt = np.concatenate([np.zeros_like(own.adapters[0].arrays[":F"]), grads["default/:E"]])
    expected = {f"grad::{up}.{end}": grads[f"default/layers.0.mlp.up.{end}:W1"] for end in ("weight", "bias")}
    write_tensors(tmp_path / "expected.safetensors", given | expected | {"grad::prompt_embeddings": prompt})
    report = replay(bases["llama"], tmp_path)
    assert report.agrees(strict=True), report


@pytest.mark.parametrize("base", TABLES)
@pytest.mark.parametrize("name", PROMPTS)
def test_a_table_saved_whole_beside_a_prompt(name, base, bases, tmp_path):
    """PEFT looks tokens up in the base's, but where its own name ends in word_embeddings: then in a copy of its own."""
    own = moved(attach(bases[base], METHODS[name](p=3)))
    save_peft(own, tmp_path)
    table = bases[base].params["embed.tokens.weight"]
    fields = dict(modules_to_save=[TABLES[base].split(".")[-2]])
    tensors = {TABLES[base]: 2 * table}
    tensors |= {"word_embeddings.weight": 3 * table} if base == "bert-cls" else {}
    changed(tmp_path, tensors, **fields)
    got = load_peft(bases[base], tmp_path)
    inside = name in ("prefix_tuning", "cartridge")
    acts = 2.0 if inside else 3.0 if base == "bert-cls" else 1.0
    np.testing.assert_allclose(got.run().forward(GIVEN).logits, _times(own, acts).logits(GIVEN), rtol=0, atol=1e-12)
    save_peft(got, tmp_path / "again")
    assert read_tensors(tmp_path / "again" / "adapter_model.safetensors").keys() >= tensors.keys()
    np.testing.assert_array_equal(load_peft(bases[base], tmp_path / "again").logits(GIVEN), got.logits(GIVEN))


def _times(adapted, factor):
    table = adapted.model.params["embed.tokens.weight"]
    params = {**adapted.model.params, "embed.tokens.weight": factor * table}
    return dataclasses.replace(adapted, model=dataclasses.replace(adapted.model, params=params))


def test_a_table_trained_beside_a_prompt_is_not_written_where_it_would_not_count(bases, tmp_path):
    trained = attach(bases["llama"], METHODS["prompt_tuning"](p=3), train_whole=["embed_tokens"])
    with pytest.raises(Bad, match="looks tokens up in the base's"):
        save_peft(trained, tmp_path)
