"""What minipeft saves, PEFT loads, and computes the same: logits and loss in float64, for every method that PEFT has."""

import os
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.arrays import needs
from minipeft.attaching import attach
from minipeft.checkpoints import load, save_model
from minipeft.checkpoints.files import read_tensors
from minipeft.conformance.laws import K, sensitivity
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.registry import has, spec_named, spec_of, specs
from minipeft.interop.peft.spec import Trial
from minipeft.interop.peft.writing import save_peft
from minipeft.merging import merge
from minipeft.method import METHODS, load_methods
from minipeft.model.batch import INPUTS, batch
from minipeft.model.replicated import replicated

pytestmark = pytest.mark.hf
TESTS = Path(__file__).parents[2]
ROOT = TESTS / "data" / "peft"
CLASSES = {
    "llama": "LlamaForCausalLM", "llama-tied": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "bert-cls": "BertForSequenceClassification",
    "llama-cls": "LlamaForSequenceClassification", "t5": "T5ForConditionalGeneration",
    "t5gated": "T5ForConditionalGeneration", "mistral": "MistralForCausalLM",
    "vit-channels": "ViTForImageClassification",
}  # fmt: skip
load_methods()


def trials():
    """{name: method, trial}: those of every file, and of each method without one the first of what it is made of."""
    out = {}
    for name, cls in sorted(METHODS.items()):
        if not cls.__module__.startswith("minipeft.") or not has(cls):
            continue
        spec = spec_named(name)
        own = spec.trials if spec else [Trial(t.base, t.settings) for t in spec_of(cls).trials[:1]]
        out |= {f"{name} {t.name}".strip(): (name, t) for t in own}
    return out


TRIALS = trials()


@pytest.fixture(scope="module")
def hf():
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, str(TESTS / "record"))
    import float64

    yield float64
    sys.path.remove(str(TESTS / "record"))


def inputs(base, tasks):
    if base.startswith("vit"):
        return dict(pixel_values=np.random.default_rng(0).standard_normal((2, 6, 6, 6)), labels=np.array([2, 0]))
    ids = np.array([[5, 9, 3, 17, 30], [8, 30, 4, 11, 2]])
    given = dict(input_ids=ids, attention_mask=np.ones_like(ids), labels=ids)
    if base.startswith("t5"):
        given["labels"] = ids[:, :3]
    elif base.endswith("cls"):
        given["labels"] = np.array([2, 0])
    return given | (dict(task_ids=np.array([1, 0])) if tasks else {})


def adapted_of(name, trial, model):
    cls, given = METHODS[name], batch(**inputs(trial.base, tasks=False))
    if name == "x_lora":
        experts = Adapted(model)
        for k in range(3):
            experts = attach(
                experts, METHODS["lora"](r=2 + k, alpha=3.0), name=f"e{k}", targets="q_proj down_proj", seed=k
            )
        method = cls.from_adapters(moved(experts).adapters, **trial.settings)
    else:
        method = cls(**trial.settings)
    return moved(attach(model, method, data=[given] if needs(method) else (), **trial.attached))


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

    modules = [import_module(m) for m in sorted({m for spec in specs().values() for m in spec.wide})]
    with hf.as_float64(*modules):
        model = getattr(transformers, CLASSES[base]).from_pretrained(
            ROOT / base / "base", dtype=torch.float64, attn_implementation="eager"
        )
        model.config.use_cache = False
        return PeftModel.from_pretrained(model, folder).double().eval(), modules


@pytest.mark.parametrize(("name", "trial"), TRIALS.values(), ids=TRIALS)
def test_peft_computes_the_same(name, trial, hf, tmp_path):
    import torch

    base = trial.base
    plain = load(ROOT / base / "base", np.float64)
    adapted = adapted_of(name, trial, replicated(plain, trial.layers) if trial.layers else plain)
    given = inputs(base, hasattr(METHODS[name], "n_tasks"))
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
    u = 2.0**-24 if trial.inexact else 2.0**-53
    assert abs(adapted.logits(batch(**given)) - want).max() <= K * u * cond
    again = load_peft(plain if trial.layers else adapted.model, tmp_path)
    assert abs(again.logits(batch(**given)) - want).max() <= K * u * cond


PATCHES = {k: v for k, v in TRIALS.items() if v[1].base == "vit-channels"}


@pytest.mark.parametrize(("name", "trial"), PATCHES.values(), ids=PATCHES)
def test_peft_merges_into_the_same_kernel(name, trial, hf, tmp_path):
    import torch

    adapted = adapted_of(name, trial, load(ROOT / trial.base / "base", np.float64))
    save_peft(adapted, tmp_path)
    model, modules = read_by_peft(hf, trial.base, tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        with hf.as_float64(*modules):
            layer = model.merge_and_unload().vit.embeddings.patch_embeddings.projection
    finally:
        torch.set_default_dtype(torch.float32)
    merged = merge(adapted).params
    for ours, theirs in (("weight", layer.weight), ("bias", layer.bias)):
        a = merged[f"embed.patch.{ours}"]
        np.testing.assert_allclose(theirs.detach().numpy().reshape(a.shape), a, rtol=0, atol=1e-13 * abs(a).max())


ALIKE = ("llama/lora-parameters", "bert-cls/lora-parameters", "t5/lora-parameters", "llama-tied/lora-tied-whole")
AGAIN = (
    *ALIKE,
    "gpt2/lora-parameters",
    "llama-tied/lora-tied",
    "llama-tied/lora-tied-head",
    "gpt2/lora-tied",
)  # of which PEFT does not merge the last as it computes them: deviations.md#peft-tied-merge


@pytest.mark.parametrize("case", AGAIN)
def test_peft_reads_again_what_it_wrote(case, hf, tmp_path):
    """What of an adapter only its file tells: PEFT computes with what we write of it as it did with its own."""
    import torch

    base = case.split("/")[0]
    expected = read_tensors(ROOT / case / "expected.safetensors")
    adapted = load_peft(load(ROOT / base / "base", np.float64), ROOT / case / "adapter")
    save_peft(adapted, tmp_path)
    model, modules = read_by_peft(hf, base, tmp_path)
    given = {k: torch.tensor(a) for k, a in expected.items() if k in INPUTS}
    torch.set_default_dtype(torch.float64)
    try:
        with hf.as_float64(*modules), torch.no_grad():
            got = model(**given).logits.numpy()
            merged = model.merge_and_unload()
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(got, expected["logits"], rtol=0, atol=1e-12 * abs(got).max())
    if case in ALIKE:
        save_model(merge(adapted), tmp_path / "merged")
        state = dict(merged.state_dict())
        for name, a in read_tensors(tmp_path / "merged" / "model.safetensors").items():
            np.testing.assert_allclose(state[name].numpy(), a, rtol=0, atol=1e-14 * abs(a).max(), err_msg=name)


def test_every_method_that_peft_has_is_here():
    """What is tried elsewhere: over a base in four bits, or in the method's own tests. What a file does not hold all of is not written."""
    elsewhere = {"arrow", "loftq", "qa_lora", "qlora"} | {n for n, s in specs().items() if s.unsaved}
    assert set(specs()) - {name for name, _ in TRIALS.values()} == elsewhere


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
