"""What minipeft saves, PEFT loads, and computes the same: logits and loss in float64, for every method that PEFT has."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from minipeft.checkpoints import load
from minipeft.conformance.laws import K, sensitivity
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.method import METHODS, load_methods
from minipeft.model.arch import batch
from minipeft.run import Adapted, attach

pytestmark = pytest.mark.hf
TESTS = Path(__file__).parents[2]
ROOT = TESTS / "data" / "peft"
CLASSES = {
    "llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "bert-cls": "BertForSequenceClassification",
    "llama-cls": "LlamaForSequenceClassification", "t5": "T5ForConditionalGeneration",
    "t5gated": "T5ForConditionalGeneration", "mistral": "MistralForCausalLM",
}  # fmt: skip
load_methods()

SETTINGS = {  # a name -> base, method, its fields, how it is attached
    "lora": ("llama", "lora", dict(r=3, alpha=5.0), dict(targets="all-linear", patterns={"q_proj": dict(r=2, alpha=7.0)})),
    "lora rslora": ("gpt2", "lora", dict(r=3, alpha=5.0, rslora=True), {}),
    "lora bias": ("gpt2", "lora", dict(r=2, lora_bias=True), {}),
    "lora embedding": ("llama", "lora", dict(r=2), dict(targets="embed_tokens lm_head")),
    "lora trained whole": ("bert-cls", "lora", dict(r=2), dict(train_whole=["classifier"], bias="adapted")),
    "lora all biases": ("bert-cls", "lora", dict(r=2), dict(bias="all")),
    "lora on a classifier": ("llama-cls", "lora", dict(r=2), dict(train_whole=["score"])),
    "lora t5": ("t5", "lora", dict(r=2), dict(targets="q v wi")),
    "dora": ("llama", "dora", dict(r=2), dict(targets="q_proj down_proj embed_tokens")),
    "dora gpt2": ("gpt2", "dora", dict(r=2), {}),
    "dora pissa": ("llama", "dora", dict(r=2, start="svd"), dict(targets="q_proj down_proj embed_tokens")),
    "dora olora": ("llama", "dora", dict(r=2, start="qr"), {}),
    "pissa": ("llama", "pissa", dict(r=3), {}),
    "pissa olora": ("llama", "pissa", dict(r=3, factors="qr", rslora=True), dict(targets="q_proj down_proj")),
    "eva": ("llama", "eva", dict(r=3), {}),
    "lora_ga": ("llama", "lora_ga", dict(r=3), {}),
    "lora_plus": ("llama", "lora_plus", dict(r=3), {}),
    "adalora": ("llama", "adalora", dict(r=4, target_r=2), {}),
    "adalora kept": ("gpt2", "adalora", dict(r=4, target_r=2, kept=3), {}),
    "osf": ("llama", "osf", dict(effective_rank=5), dict(targets="k_proj o_proj")),
    "vera": ("llama", "vera", dict(r=4), {}),
    "fourierft": ("llama", "fourierft", dict(n_frequency=9, scaling=20.0), dict(patterns={"v_proj": dict(n_frequency=5)})),
    "oft": ("llama", "oft", dict(block=4, r=0), {}),
    "oft exact": ("llama", "oft", dict(block=4, r=0, cayley="exact", block_share=True), {}),
    "loha": ("llama", "loha", dict(r=3, alpha=5.0), dict(patterns={"v_proj": dict(alpha=2.0)})),
    "ia3": ("llama", "ia3", {}, {}),
    "ia3 gpt2": ("gpt2", "ia3", {}, {}),
    "shira": ("llama", "shira", dict(r=2, seed=3), {}),
    "trainable_tokens": ("llama", "trainable_tokens", dict(tokens=(3, 7, 30)), {}),
    "prompt_tuning": ("llama", "prompt_tuning", dict(p=3), {}),
    "prompt_tuning bert": ("bert-cls", "prompt_tuning", dict(p=3), {}),
    "prompt_tuning t5": ("t5", "prompt_tuning", dict(p=3), {}),
    "p_tuning mlp": ("gpt2", "p_tuning", dict(p=3, hidden=5, encoder="mlp"), {}),
    "p_tuning lstm": ("llama", "p_tuning", dict(p=3, hidden=5), {}),
    "prefix_tuning": ("llama", "prefix_tuning", dict(p=3), {}),
    "prefix_tuning projected": ("gpt2", "prefix_tuning", dict(p=3, hidden=5), {}),
    "prefix_tuning window": ("mistral", "prefix_tuning", dict(p=3, window="past"), {}),
    "prefix_tuning t5 ordered": ("t5", "prefix_tuning", dict(p=3), {}),
    "prefix_tuning t5 unequal": ("t5gated", "prefix_tuning", dict(p=3, layout="peft", blocks=3), {}),
    "prompt_tuning window": ("mistral", "prompt_tuning", dict(p=3), {}),
    "prefix_tuning t5": ("t5", "prefix_tuning", dict(p=3, layout="peft"), {}),
    "llama_adapter": ("llama", "llama_adapter", dict(K=3, adds="projected"), dict(targets="attn.heads attn.o.out")),
    "llama_adapter gpt2": ("gpt2", "llama_adapter", dict(K=3, adds="bare"), dict(targets="attn.heads attn.o.out")),
    "poly": ("llama", "poly", dict(r=2, n_tasks=2, n_skills=3, n_splits=2), {}),
    "x_lora": ("llama", "x_lora", dict(depth=2, hidden=6, dropout=0.1, layerwise=True, top_k=2), {}),
}  # fmt: skip
FLOAT32 = "PEFT reads a prompt into float32"
INEXACT = {
    "pissa": "PEFT decomposes the base in float32 when it loads",
    "pissa olora": "PEFT decomposes the base in float32 when it loads",
    "dora pissa": "PEFT decomposes the base in float32 when it loads",
    "dora olora": "PEFT decomposes the base in float32 when it loads",
    "p_tuning mlp": FLOAT32,
    "p_tuning lstm": FLOAT32,
    "prefix_tuning projected": FLOAT32,
}


@pytest.fixture(scope="module")
def hf():
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, str(TESTS / "record"))
    import float64

    yield float64
    sys.path.remove(str(TESTS / "record"))


def inputs(base, tasks):
    ids = np.array([[5, 9, 3, 17, 30], [8, 30, 4, 11, 2]])
    given = dict(input_ids=ids, attention_mask=np.ones_like(ids), labels=ids)
    if base.startswith("t5"):
        given["labels"] = ids[:, :3]
    elif base.endswith("cls"):
        given["labels"] = np.array([2, 0])
    return given | (dict(task_ids=np.array([1, 0])) if tasks else {})


def adapted_of(setting, model):
    base, name, fields, options = SETTINGS[setting]
    cls, given = METHODS[name], batch(**inputs(base, tasks=False))
    if name == "x_lora":
        experts = Adapted(model)
        for k in range(3):
            experts = attach(
                experts, METHODS["lora"](r=2 + k, alpha=3.0), name=f"e{k}", targets="q_proj down_proj", seed=k
            )
        method = cls.from_adapters(moved(experts).adapters, **fields)
    else:
        method = cls(**fields)
    return moved(attach(model, method, data=[given] if method.needs else (), **options))


def moved(adapted):
    """Noise on all that is trained, rounded to float32, so that files lose nothing."""
    rng = np.random.default_rng(0)
    noisy = {k: v + 0.2 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()}
    return adapted.replace({k: v.astype(np.float32).astype(np.float64) for k, v in noisy.items()})


def read_by_peft(hf, base, folder):
    """PEFT's model with the adapter, in float64."""
    import torch
    import transformers
    from peft import PeftModel
    from peft.tuners.adaption_prompt import layer, utils
    from peft.tuners.lora import layer as lora_layer
    from peft.tuners.osf import utils as osf_utils

    with hf.as_float64(layer, utils, lora_layer, osf_utils):
        model = getattr(transformers, CLASSES[base]).from_pretrained(
            ROOT / base / "base", dtype=torch.float64, attn_implementation="eager"
        )
        model.config.use_cache = False
        return PeftModel.from_pretrained(model, folder).double().eval(), (layer, utils, lora_layer, osf_utils)


@pytest.mark.parametrize("setting", SETTINGS)
def test_peft_computes_the_same(setting, hf, tmp_path):
    import torch

    base, name, _, _ = SETTINGS[setting]
    adapted = adapted_of(setting, load(ROOT / base / "base", np.float64))
    given = inputs(base, name == "poly")
    save_peft(adapted, tmp_path)
    model, modules = read_by_peft(hf, base, tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        with hf.as_float64(*modules), torch.no_grad():
            out = model(**{k: torch.tensor(v) for k, v in given.items()})
            want = out.logits.numpy()
    finally:
        torch.set_default_dtype(torch.float32)
    arrays = {k: v for k, v in adapted.adapters[0].arrays.items() if v.dtype.kind == "f"}
    cond = sensitivity(lambda m, _: Adapted(m, adapted.adapters).logits(batch(**given)), adapted.model, arrays)
    u = 2.0**-24 if setting in INEXACT else 2.0**-53
    assert abs(adapted.logits(batch(**given)) - want).max() <= K * u * cond
    again = load_peft(adapted.model, tmp_path)
    assert abs(again.logits(batch(**given)) - want).max() <= K * u * cond


def test_every_method_that_peft_has_is_here():
    from minipeft.interop.peft.registry import specs

    assert set(specs()) <= {s[1] for s in SETTINGS.values()}


@pytest.mark.parametrize("base", ["gpt2", "bert-cls", "mistral"])
@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
def test_given_positions_and_padding(base, name, hf, tmp_path):
    """PEFT drops position ids that are given with a prompt, and moves them with a prefix; so is its file read."""
    import torch

    fields = dict(p=3) | (dict(window="past") if name == "prefix_tuning" else {})
    adapted = moved(attach(load(ROOT / base / "base", np.float64), METHODS[name](**fields)))
    save_peft(adapted, tmp_path)
    given = {k: v for k, v in inputs(base, tasks=False).items() if k != "labels"}
    given |= dict(attention_mask=np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]))
    given |= dict(position_ids=np.array([[0, 0, 0, 1, 2], [0, 2, 1, 3, 5]]))
    model, modules = read_by_peft(hf, base, tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        with hf.as_float64(*modules), torch.no_grad():
            want = model(**{k: torch.tensor(v) for k, v in given.items()}).logits.numpy()
    finally:
        torch.set_default_dtype(torch.float32)
    got = load_peft(adapted.model, tmp_path).logits(batch(**given))
    real = slice(None) if got.ndim == 2 else slice(-3, None)  # what padding computes has no meaning
    np.testing.assert_allclose(got[:, real], want[:, real], rtol=0, atol=1e-11 * abs(want).max())
