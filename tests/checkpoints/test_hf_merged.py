"""transformers computes with a merged checkpoint what we compute with the adapted model, for every family and kind of change."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_json
from minipeft.checkpoints.merged import probe, save_merged
from minipeft.conformance.laws import K, sensitivity
from minipeft.errors import Bad, Unfit
from minipeft.method import METHODS, load_methods
from minipeft.run import Adapted, attach

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
NO_BIAS = {
    "mistral": "mistral",
    "qwen2": "qwen2",
    "t5": "t5",
    "t5-gated": "t5",
}  # config.json cannot say that there is one


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
    return shown(given, (out.logits if "logits" in out else out.last_hidden_state).numpy(), model.config)


def shown(given, y, config=None):
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
    if change.startswith("lora_bias") and name in NO_BIAS:
        with pytest.raises(Bad, match=rf"lora_bias=True.*of a {NO_BIAS[name]} model cannot say that it has this bias"):
            save_merged(adapted, BASES / name, out, dtype="float64")
        assert not list(tmp_path.iterdir())
        return
    save_merged(adapted, BASES / name, out, dtype="float64")
    given = probe(adapted.model, (3, 7, 30))
    agree(adapted, given, by_transformers(hf, out, given), load(out, np.float64))
    assert abs(by_us(adapted, given) - by_us(Adapted(adapted.model), given)).max() > 1e-3
