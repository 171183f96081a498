"""Merging into files: what is written computes what the adapted model computes, or nothing is written."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load, merged, save_model, saving, with_head
from minipeft.checkpoints.files import read_header, read_json, read_tensors, write_tensors
from minipeft.checkpoints.merged import probe, save_merged
from minipeft.checkpoints.native import save_adapter, trained_in
from minipeft.cli.adapters import opened
from minipeft.conformance import tiny
from minipeft.data import BASE
from minipeft.engine.bfloat16 import bfloat16
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.lowrank.qlora import QLoRA
from minipeft.methods.scaling.ia3 import IA3

load_methods()
BASES = Path(__file__).parents[1] / "data" / "bases"


def moved(adapted, seed=0, by=0.2):
    rng = np.random.default_rng(seed)
    return adapted.replace(
        {k: v + (by * rng.standard_normal(v.shape)).astype(v.dtype) for k, v in adapted.theta.items()}
    )


def adapted(name, method="lora", dtype=np.float64, **options):
    return moved(attach(load(BASES / name, dtype), method, **options))


def logits(model, seed=0):
    return Adapted(model).forward(probe(model, seed=seed)).logits


def nothing(folder):
    return not list(folder.iterdir())


# --- facts --------------------------------------------------------------------------------------------------------------


def test_biases_on_llama_are_announced_and_the_others_are_zero(tmp_path):
    there = adapted("llama", LoRA(r=2, lora_bias=True), targets="q_proj")
    save_merged(there, BASES / "llama", tmp_path / "m", dtype="float64")
    config, found = read_json(tmp_path / "m" / "config.json"), read_tensors(tmp_path / "m" / "model.safetensors")
    assert config["attention_bias"] is True and not config.get("mlp_bias")
    q = there.adapters[0].arrays["layers.0.attn.q.weight:c"]
    np.testing.assert_array_equal(found["model.layers.0.self_attn.q_proj.bias"], 4.0 * q)  # α/r = 8/2
    for m in "kvo":
        assert not found[f"model.layers.0.self_attn.{m}_proj.bias"].any()
    assert not [k for k in found if "mlp" in k and k.endswith("bias")]


@pytest.mark.parametrize("name", ["mistral", "t5", "qwen2"])
def test_biases_that_no_config_can_announce(name, tmp_path):
    there = adapted(name, LoRA(r=2, lora_bias=True), targets="attn.o.weight")
    with pytest.raises(
        Bad, match=rf"'default' \(lora, lora_bias=True\).*of a {name} model cannot say that it has this bias"
    ):
        save_merged(there, BASES / name, tmp_path / "m")
    with pytest.raises(Bad, match="cannot say that it has this bias"):
        save_model(merge(there), tmp_path / "n")
    assert nothing(tmp_path)


def test_an_untied_t5_head_holds_the_scale_of_what_it_reads(tmp_path):
    """So that a reader that scales only before a tied head, as transformers does, and one that never does agree."""
    there = adapted("t5", "full", targets="head.weight")
    save_merged(there, BASES / "t5", tmp_path / "m", dtype="float64")
    config, found = read_json(tmp_path / "m" / "config.json"), read_tensors(tmp_path / "m" / "model.safetensors")
    assert config["tie_word_embeddings"] is False and config["scale_decoder_outputs"] is False
    W1 = there.adapters[0].arrays["head.weight:W1"]
    np.testing.assert_array_equal(found["lm_head.weight"], W1 * config["d_model"] ** -0.5)
    read = load(tmp_path / "m", np.float64)
    assert read.arch.head_scale == 1.0 and not read.arch.tied


@pytest.mark.parametrize(("name", "head"), [("bert-mlm", "cls.predictions"), ("roberta-mlm", "lm_head")])
def test_an_untied_mlm_head_has_its_bias_where_transformers_looks(name, head, tmp_path):
    there = adapted(name, LoRA(r=2), targets="embed.tokens.weight")
    save_merged(there, BASES / name, tmp_path / "m", dtype="float64")
    found = read_tensors(tmp_path / "m" / "model.safetensors")
    assert read_json(tmp_path / "m" / "config.json")["tie_word_embeddings"] is False
    np.testing.assert_array_equal(found[f"{head}.decoder.bias"], found[f"{head}.bias"])
    np.testing.assert_array_equal(found[f"{head}.decoder.weight"], there.model.params["embed.tokens.weight"])
    assert found[f"{head}.bias"].any()


def test_a_lost_bias_of_a_head_is_written_as_zeros(tmp_path):
    there = adapted("bert-mlm", METHODS["trainable_tokens"](tokens=(3, 7), head_bias="drop"))
    assert there.model.params["head.bias"].any() and "head.bias" not in merge(there).params
    save_merged(there, BASES / "bert-mlm", tmp_path / "m")
    assert not read_tensors(tmp_path / "m" / "model.safetensors")["cls.predictions.bias"].any()


def test_a_classifier_that_an_adapter_brings(tmp_path):
    base = load(BASES / "gpt2", np.float64)
    there = moved(attach(with_head(base, "classify", 3), LoRA(r=2), train_whole=["score"]))
    there = dataclasses.replace(there, adapters=(dataclasses.replace(there.adapters[0], options={"classes": ["bad", "so", "good"]}),))  # fmt: skip
    save_merged(there, BASES / "gpt2", tmp_path / "m")
    config = read_json(tmp_path / "m" / "config.json")
    assert config["architectures"] == ["GPT2ForSequenceClassification"]
    assert config["id2label"] == {"0": "bad", "1": "so", "2": "good"} and config["label2id"]["good"] == 2
    assert config["problem_type"] == "single_label_classification" and type(config["pad_token_id"]) is int
    assert load(tmp_path / "m").arch.labels == 3


def test_what_the_files_hold_for_other_heads_comes_along(tmp_path):
    """A decoder's output matrix beside its classifier; with the language-model head back it computes what the base does."""
    base = load(BASES / "llama", np.float64)
    there = moved(attach(with_head(base, "classify", 3), "full", targets="score.weight"))
    save_merged(there, BASES / "llama", tmp_path / "m", dtype="float64")
    read = load(tmp_path / "m", np.float64)
    assert read.arch.head == "classify" and "lm_head.weight" in read.spare
    np.testing.assert_array_equal(logits(with_head(read, "lm")), logits(base))


# --- types --------------------------------------------------------------------------------------------------------------


def typed(name, kind, folder):
    """A base whose files hold another type."""
    model = load(BASES / name)
    config = dict(model.config)
    config.pop("dtype", None)
    save_model(model, folder, config, dtype="float16" if kind == "F16" else None)
    if kind == "BF16":
        tensors = read_tensors(folder / "model.safetensors")
        write_tensors(folder / "model.safetensors", {k: bfloat16(a) for k, a in tensors.items()})
    return folder


@pytest.mark.parametrize(("kind", "said"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_the_type_of_the_bases_files_is_kept_and_its_rounding_told(kind, said, tmp_path):
    base = typed("llama", kind, tmp_path / "base")
    there = moved(attach(load(base), LoRA(r=2)))
    found = save_merged(there, base, tmp_path / "m")
    header = read_header(tmp_path / "m" / "model.safetensors")
    assert {e["dtype"] for k, e in header.items() if k != "__metadata__"} == {kind}
    assert read_json(tmp_path / "m" / "config.json")["torch_dtype"] == said == found.dtype
    given = probe(there.model)
    mask = given.host("attention_mask") == 1
    off = abs(Adapted(load(tmp_path / "m")).logits(given) - there.logits(given))[mask]
    assert found.largest == off.max() and found.mean == pytest.approx(off.mean(), rel=1e-6)
    assert f"once rounded to {said}" in str(found) and found.unrounded < found.largest / 4
    untouched = "model.layers.0.self_attn.k_proj.weight"
    read, was = (read_tensors(f / "model.safetensors")[untouched] for f in (tmp_path / "m", base))
    np.testing.assert_array_equal(read, was)
    W = merge(there).params["layers.0.attn.q.weight"]
    rounded = W.astype(np.float16) if kind == "F16" else bfloat16(W).dequantize()
    np.testing.assert_array_equal(read_tensors(tmp_path / "m" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"], rounded)  # fmt: skip


def test_another_type_may_be_asked_for(tmp_path):
    there = moved(attach(load(BASE), LoRA(r=2), targets="q_proj"))
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        found = save_merged(there, BASE, tmp_path / dtype, dtype=dtype)
        assert found.dtype == dtype == read_json(tmp_path / dtype / "config.json")["torch_dtype"]
    exact = merge(merged._at_least(there, "float64")).params["layers.0.attn.q.weight"]
    np.testing.assert_array_equal(load(tmp_path / "float64", np.float64).params["layers.0.attn.q.weight"], exact)


def test_numbers_beyond_a_type_are_refused(tmp_path):
    there = attach(load(BASE), "full", targets="layers.0.mlp.up.weight")
    there = there.replace({k: v * 0 + 7e4 for k, v in there.theta.items()})
    with pytest.raises(Bad, match=r"up_proj\.weight has numbers beyond the range of float16.*choose another --dtype"):
        save_merged(there, BASE, tmp_path / "m")
    assert nothing(tmp_path)


def test_four_bits_say_what_they_cost(tmp_path):
    there = moved(attach(load(BASE), QLoRA(r=2), targets="q_proj"), by=0.02)
    found = save_merged(there, BASE, tmp_path / "m")
    assert found.quantised and 0 < found.quantised[1] < found.quantised[0] and "four bits cost the base" in str(found)
    held = there.model.params["layers.0.attn.q.weight"].dequantize()
    given, alone = probe(there.model), load(BASE)
    params = {k: W.dequantize() if hasattr(W, "dequantize") else W for k, W in there.model.params.items()}
    off = abs(Adapted(dataclasses.replace(alone, params=params)).logits(given) - Adapted(alone).logits(given))
    assert abs(held - alone.params["layers.0.attn.q.weight"]).max() > 0
    assert found.quantised[0] == pytest.approx(off[given.host("attention_mask") == 1].max(), rel=1e-3)


@pytest.mark.parametrize("held", ["nf4", "nf4-double"])
def test_a_base_held_in_four_bits_is_opened_so_and_written_as_numbers(held, tmp_path):
    there = moved(attach(load(BASE, held), LoRA(r=2), targets="q_proj"), by=0.02)
    save_adapter(there, tmp_path / "a")
    assert trained_in(tmp_path / "a") == held
    again = opened(BASE, [tmp_path / "a"])
    found = save_merged(again, BASE, tmp_path / "m", dtype="float32")
    assert found.quantised
    own = there.adapters[0].grouped()["layers.0.attn.q.weight"]
    W = there.model.params["layers.0.attn.q.weight"].dequantize() + 4.0 * own["B"] @ own["A"]
    np.testing.assert_allclose(load(tmp_path / "m").params["layers.0.attn.q.weight"], W, rtol=0, atol=1e-6)


# --- the check can fail ---------------------------------------------------------------------------------------------------


def _lies(monkeypatch, where, name, made):
    monkeypatch.setattr(where, name, made(getattr(where, name)))


PLANTED = {  # what is wrong with the writer -> base, adapter, how
    "a bias is not written": (
        "llama", dict(method=LoRA(r=2, lora_bias=True), targets="q_proj"),
        lambda m: _lies(m, saving, "write_tensors", lambda f: lambda p, t, *a: f(p, {k: v for k, v in t.items() if "q_proj.bias" not in k}, *a)),
    ),
    "the bias is not announced": (
        "llama", dict(method=LoRA(r=2, lora_bias=True), targets="q_proj"),
        lambda m: _lies(m, saving, "write_json", lambda f: lambda p, c: f(p, c | {"attention_bias": False})),
    ),
    "linears are not turned": ("gpt2", dict(method="lora"), lambda m: m.setattr(saving, "their_layout", lambda names, k, a, arch: a)),
    "the old head": (
        "gpt2", dict(method="full", targets="head.weight"),
        lambda m: _lies(m, saving, "write_tensors", lambda f: lambda p, t, *a: f(p, {k: v for k, v in t.items() if k != "lm_head.weight"}, *a)),
    ),
    "t5's scale": (
        "t5", dict(method="full", targets="head.weight"),
        lambda m: _lies(m, saving, "write_json", lambda f: lambda p, c: f(p, c | {"scale_decoder_outputs": True})),
    ),
    "the base's weight": (
        "llama", dict(method="lora"),
        lambda m: m.setattr(merged, "merge", lambda a: dataclasses.replace(merge(a), params={**merge(a).params, "layers.0.attn.q.weight": a.model.params["layers.0.attn.q.weight"]})),
    ),
    "the wrong eps": ("llama", dict(method="lora"), lambda m: _lies(m, saving, "write_json", lambda f: lambda p, c: f(p, c | {"rms_norm_eps": 0.1}))),
    "one number": (
        "llama", dict(method="lora"),
        lambda m: _lies(m, saving, "write_tensors", lambda f: lambda p, t, *a: f(p, t | {"model.norm.weight": np.nextafter(t["model.norm.weight"], 9)}, *a)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANTED)
def test_a_wrong_writer_is_caught_and_leaves_nothing(what, tmp_path, monkeypatch):
    name, how, plant = PLANTED[what]
    there = adapted(name, **how)
    plant(monkeypatch)
    with pytest.raises(Bad, match=r"not written|cannot be written") as caught:
        save_merged(there, BASES / name, tmp_path / "m", dtype="float64")
    assert "\n" not in str(caught.value) and nothing(tmp_path)


def test_every_row_that_changed_is_probed():
    model = tiny.model()
    ids = probe(model, [41, 17, 3]).host("input_ids")
    assert {41, 17, 3} <= set(ids.ravel().tolist())


# --- folders --------------------------------------------------------------------------------------------------------------


def test_what_belongs_to_a_checkpoint_comes_along(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(BASES / "gpt2", base)
    ours = ["tokenizer_config.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "generation_config.json",
            "special_tokens_map.json", "added_tokens.json", "LICENSE"]  # fmt: skip
    others = [
        "pytorch_model.bin",
        "optimizer.pt",
        "adapter_config.json",
        ".gitattributes",
        "model.safetensors.index.json",
    ]
    for name in ours + others:
        (base / name).write_text(json.dumps(name))
    save_merged(adapted("gpt2"), base, tmp_path / "m")
    found = {p.name for p in (tmp_path / "m").iterdir()}
    assert found == {*ours, "config.json", "model.safetensors"}
    assert (tmp_path / "m" / "vocab.txt").read_bytes() == (base / "vocab.txt").read_bytes()


def test_neither_base_nor_adapter_nor_anything_else_is_written_over(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(BASES / "llama", base)
    there = adapted("llama")
    before = {p: p.read_bytes() for p in base.iterdir()}
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(base)
    for out in (
        base,
        tmp_path / "a",
        base / ".." / "base",
        tmp_path / "link",
        base / "new" / "..",
        tmp_path / "a" / "x" / "..",
    ):
        with pytest.raises(Bad, match="a folder that is read from"):
            save_merged(there, base, out, spared=[tmp_path / "a"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    with pytest.raises(Bad, match=r"holds diary\.txt, which is no part of the merged checkpoint"):
        save_merged(there, base, tmp_path / "notes")
    with pytest.raises(Bad, match="is a file"):
        save_merged(there, base, tmp_path / "notes" / "diary.txt")
    assert {p: p.read_bytes() for p in base.iterdir()} == before and not list((tmp_path / "a").iterdir())
    save_merged(there, base, base / "merged", dtype="float64")  # writes over nothing
    merged = {p: p.read_bytes() for p in (base / "merged").iterdir()}
    (tmp_path / "link" / "to").symlink_to(base / "merged")
    for out in (base / "merged", tmp_path / "link" / "merged", tmp_path / "link" / "to"):
        save_merged(there, base, out, dtype="float64")  # once more, over itself
    assert {p: p.read_bytes() for p in (base / "merged").iterdir()} == merged


def test_a_model_is_not_written_over_what_it_was_read_from(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(BASES / "llama", base)
    before = {p: p.read_bytes() for p in base.iterdir()}
    (tmp_path / "link").symlink_to(base)
    folded = merge(attach(load(base, np.float64), LoRA(r=2)))
    for out in (base, tmp_path / "link", base / "new" / ".."):
        with pytest.raises(Bad, match="a folder that is read from"):
            save_model(folded, out)
        with pytest.raises(Bad, match="a folder that is read from"):  # whatever base is said to be
            save_merged(attach(load(base, np.float64), LoRA(r=2)), BASES / "llama", out)
    save_adapter(attach(load(base), LoRA(r=2)), tmp_path / "a")
    with pytest.raises(Bad, match=r"holds adapter\.json, so it is an adapter"):
        save_model(folded, tmp_path / "a")
    assert {p: p.read_bytes() for p in base.iterdir()} == before and not (base / "new").exists()
    save_model(folded, tmp_path / "new")


def test_an_earlier_merge_is_replaced_whole(tmp_path):
    one, other = adapted("llama"), adapted("llama", IA3())
    save_merged(one, BASES / "llama", tmp_path / "x" / "m", dtype="float64")
    save_merged(other, BASES / "llama", tmp_path / "x" / "m", dtype="float64")
    np.testing.assert_array_equal(logits(load(tmp_path / "x" / "m", np.float64)), logits(merge(other)))
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["m"]


def test_a_base_in_shards(tmp_path):
    assert (BASES / "llama" / "model.safetensors.index.json").exists()
    save_merged(adapted("llama"), BASES / "llama", tmp_path / "m", dtype="float64")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    np.testing.assert_array_equal(logits(load(tmp_path / "m", np.float64)), logits(merge(adapted("llama"))))


def test_what_does_not_merge_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(Bad, match=r"adapter 'default' \(prefix_tuning\) does not merge"):
        save_merged(adapted("llama", "prefix_tuning"), BASES / "llama", tmp_path / "m")
    assert nothing(tmp_path)
