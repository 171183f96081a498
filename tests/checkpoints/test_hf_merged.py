"""transformers computes with a merged checkpoint what we compute with the adapted model, for every family and kind of change."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load, with_head
from minipeft.checkpoints.files import read_json, read_tensors, write_json, write_tensors
from minipeft.checkpoints.merged import probe, save_merged
from minipeft.conformance.laws import K, sensitivity
from minipeft.errors import Bad, Note, Unfit
from minipeft.interop.peft.reading import load_peft
from minipeft.method import METHODS, load_methods

pytestmark = pytest.mark.hf
TESTS = Path(__file__).parents[1]
BASES = TESTS / "data" / "bases"
load_methods()

CHANGES = {  # a name -> method, its fields, how it is attached
    "lora": ("lora", dict(r=2), dict(targets="all-linear")),
    "lora and all biases": ("lora", dict(r=2), dict(bias="all")),
    "lora_bias": ("lora", dict(r=2, lora_bias=True), dict(targets="q k v qkv up")),
    "lora_bias on one linear": ("lora", dict(r=2, lora_bias=True), dict(targets="mlp.down.weight", layers=[0])),
    "lora on the table": ("lora", dict(r=2), dict(targets="embed.tokens.weight")),
    "lora on the head": ("lora", dict(r=2), dict(targets="head.weight score.weight")),
    "dora": ("dora", dict(r=2), {}),
    "ia3": ("ia3", {}, {}),
    "full head": ("full", {}, dict(targets="head.weight score.weight")),
    "full table": ("full", {}, dict(targets="embed.tokens.weight embed.positions.weight embed.cls")),
    "full table, head stays": ("full", dict(head="stays"), dict(targets="embed.tokens.weight")),
    "full": ("full", {}, {}),
    "trainable_tokens": ("trainable_tokens", dict(tokens=(3, 7, 30)), {}),
    "trainable_tokens, no bias": ("trainable_tokens", dict(tokens=(3, 7, 30), head_bias="drop"), {}),
    "bitfit": ("bitfit", {}, {}),
}  # fmt: skip
NO_BIAS = ("mistral", "qwen2", "t5")  # families whose config.json cannot say that there is one


@pytest.fixture(scope="module")
def hf():
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, str(TESTS / "record"))
    import float64

    yield float64
    sys.path.remove(str(TESTS / "record"))


def moved(adapted, seed=0):
    rng = np.random.default_rng(seed)
    return adapted.replace({k: v + 0.2 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def changed(name, change):
    method, fields, options = CHANGES[change]
    return moved(attach(load(BASES / name, np.float64), METHODS[method](**fields), **options))


def by_transformers(hf, folder, given, **how):
    """Logits (or hidden states) that the class named in config.json computes in float64, at the tokens the mask shows."""
    import torch
    import transformers

    cls = getattr(transformers, read_json(folder / "config.json")["architectures"][0])
    with hf.as_float64(), torch.no_grad():
        model, report = cls.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True, **how
        )
        assert (
            not report["missing_keys"] - {"pooler.dense.weight", "pooler.dense.bias"} and not report["mismatched_keys"]
        ), report
        model.eval().config.use_cache = False
        arrays = {k: torch.tensor(given.host(k)) for k in given.arrays}
        torch.set_default_dtype(torch.float64)
        try:
            out = model(**arrays)
        finally:
            torch.set_default_dtype(torch.float32)
    return shown(given, out[0].numpy())  # logits, or hidden states


def shown(given, y):
    if given.attention_mask is None or y.ndim < 3 or given.decoder_input_ids is not None:
        return y
    return y[given.host("attention_mask") == 1]


def by_us(adapted, given):
    out = adapted.forward(given)
    return shown(given, out.hidden if out.logits is None else out.logits)


def agree(adapted, given, want, merged):
    """|ours − theirs| ≤ K·u·cond in float64."""
    got = by_us(adapted, given)
    cond = sensitivity(lambda m, _: by_us(Adapted(m), given), merged, {})
    assert got.shape == want.shape
    assert abs(got - want).max() <= 4 * K * 2.0**-53 * cond


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", sorted(p.name for p in BASES.iterdir()))
def test_every_family_and_change(name, change, hf, tmp_path):
    try:
        adapted = changed(name, change)
    except Unfit:
        pytest.skip("nothing there to change")
    out = tmp_path / "merged"
    family = adapted.model.arch.family
    if change.startswith("lora_bias") and family in NO_BIAS:
        with pytest.raises(Bad, match=rf"lora_bias=True.*of a {family} model cannot say that it has this bias"):
            save_merged(adapted, BASES / name, out, dtype="float64")
        assert not list(tmp_path.iterdir())
        return
    save_merged(adapted, BASES / name, out, dtype="float64")
    given = probe(adapted.model, (3, 7, 30))
    agree(adapted, given, by_transformers(hf, out, given), load(out, np.float64))
    assert abs(by_us(adapted, given) - by_us(Adapted(adapted.model), given)).max() > 1e-3


@pytest.mark.parametrize(("kind", "torch_kind"), [("F16", "float16"), ("BF16", "bfloat16"), ("F32", "float32")])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert-mlm", "t5", "vit"])
def test_the_type_of_the_files_is_the_type_that_transformers_loads(name, kind, torch_kind, hf, tmp_path):
    import torch
    import transformers

    base = tmp_path / "base"
    cls = getattr(transformers, read_json(BASES / name / "config.json")["architectures"][0])
    cls.from_pretrained(BASES / name, dtype=getattr(torch, torch_kind)).save_pretrained(base)
    config = read_json(base / "config.json")
    write_json(base / "config.json", config | {"dtype": "float64"})  # what stands here was never true
    adapted = moved(attach(load(base), METHODS["lora"](r=2), targets="all-linear embed.tokens.weight"[: 10 if name == "vit" else None]))  # fmt: skip
    found = save_merged(adapted, base, tmp_path / "m")
    assert found.dtype == torch_kind and cls.from_pretrained(tmp_path / "m").dtype == getattr(torch, torch_kind)
    merged = load(tmp_path / "m", np.float64)
    given = probe(merged)
    agree(Adapted(merged), given, by_transformers(hf, tmp_path / "m", given), merged)


def test_two_adapters_with_weights(hf, tmp_path):
    base = load(BASES / "bert-mlm", np.float64)
    both = attach(
        attach(base, METHODS["dora"](r=2), name="a"), METHODS["full"](targets="embed.tokens.weight"), name="b"
    )
    both = moved(both).using(a=0.7, b=-0.4)
    save_merged(both, BASES / "bert-mlm", tmp_path / "m", dtype="float64")
    given = probe(base)
    agree(both, given, by_transformers(hf, tmp_path / "m", given), load(tmp_path / "m", np.float64))


@pytest.mark.parametrize("head", ["classify", "tokens"])
@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "mistral", "qwen2", "bert", "bert-mlm", "bert-cls", "roberta-mlm", "roberta-cls"]
)
def test_a_head_that_an_adapter_brings(name, head, hf, tmp_path):
    model = with_head(load(BASES / name, np.float64), head, 5)
    whole = [k for k in model.params if k.startswith("score.") or k in model.drawn]
    adapted = moved(attach(model, METHODS["lora"](r=2), train_whole=whole))
    save_merged(adapted, BASES / name, tmp_path / "m", dtype="float64")
    given = probe(load(tmp_path / "m"))
    agree(adapted, given, by_transformers(hf, tmp_path / "m", given), load(tmp_path / "m", np.float64))


def test_the_check_is_needed(hf, tmp_path):
    """A T5 head untied without its scale, as it would be written naively: transformers computes something else, by far."""
    adapted = changed("t5", "full head")
    save_merged(adapted, BASES / "t5", tmp_path / "m", dtype="float64")
    tensors = read_tensors(tmp_path / "m" / "model.safetensors")
    tensors["lm_head.weight"] = adapted.adapters[0].arrays["head.weight:W1"]
    write_tensors(tmp_path / "m" / "model.safetensors", tensors, {"format": "pt"})
    given = probe(adapted.model)
    assert abs(by_transformers(hf, tmp_path / "m", given) - by_us(adapted, given)).max() > 1


@pytest.mark.parametrize("name", ["bert", "vit-5"])
def test_a_change_of_a_pooler_that_nothing_computes_is_told(name, hf, tmp_path):
    """PEFT's adapter on every dense layer, the pooler among them: the hidden states are PEFT's."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import layer
    from transformers import AutoModel

    given = probe(load(BASES / name))
    with hf.as_float64(layer):
        base = AutoModel.from_pretrained(BASES / name, dtype=torch.float64, attn_implementation="eager")
        peft = get_peft_model(base, LoraConfig(target_modules=["dense", "o_proj"], r=2, init_lora_weights=False)).eval()
        peft.save_pretrained(tmp_path / "a")
        with torch.no_grad():
            want = peft.double()(**{k: torch.tensor(given.host(k)) for k in given.arrays}).last_hidden_state.numpy()
    adapted = load_peft(load(BASES / name, np.float64), tmp_path / "a")
    with pytest.warns(Note, match=rf"'default' also changes {name[:3]}\w*\.pooler\.dense\.weight"):
        save_merged(adapted, BASES / name, tmp_path / "m", dtype="float64")
    assert abs(by_us(adapted, given) - by_us(Adapted(adapted.model), given)).max() > 1e-3
    agree(adapted, given, shown(given, want), load(tmp_path / "m", np.float64))
