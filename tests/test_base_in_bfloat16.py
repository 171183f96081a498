"""A base held in bfloat16: what is held so, what is computed with it, files, merging. tests/device has every method."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from minipeft import attach, load, merge, save_model
from minipeft import method as protocol
from minipeft import run as running
from minipeft.adapted import Adapted
from minipeft.changes import Sum
from minipeft.checkpoints import with_head
from minipeft.checkpoints.files import read_header
from minipeft.conformance import cases, laws, tiny
from minipeft.conformance.laws import Broken
from minipeft.engine.bfloat16 import Bfloat16
from minipeft.engine.weight import widened
from minipeft.errors import Bad
from minipeft.methods.lowrank.dora import DoRA
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.lowrank.qlora import QLoRA
from minipeft.methods.selective.trainable_tokens import TrainableTokens
from minipeft.quantize import FourBits
from minipeft.train import fit

BASES = Path(__file__).parent / "data" / "bases"
U = 2.0**-24


@pytest.fixture(params=list(tiny.ARCHS))
def family(request):
    return request.param


def halves(model):
    return {k for k, W in model.params.items() if type(W) is Bfloat16}


# --- what is held ---------------------------------------------------------------------------------------------------


def test_matrices_are_held_and_nothing_else(family):
    plain = tiny.model(family)
    model = plain.astype("bfloat16")
    assert halves(model) == {
        k
        for k in plain.params
        if k.endswith(".weight") and plain.params[k].ndim == 2 and "norm" not in k and "relbias" not in k
    }
    for k, W in plain.params.items():
        want = cases.bfloat16(W) if k in halves(model) else W
        assert (widened(model.params[k]) == want.astype(np.float32)).all()
        assert widened(model.params[k]).dtype == model.dtype == np.float32
    assert model.astype("bfloat16").digest() == model.digest() != plain.astype(np.float32).digest()
    assert "bfloat16 and float32" in repr(model) and "bfloat16" not in repr(plain)
    assert model.size == plain.size
    wide = model.astype(np.float32)
    assert not halves(wide) and {W.dtype for W in wide.params.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "dtype, found", [("bfloat61", "'bfloat61'"), ("int16", "'int16'"), (np.int64, "int64"), (3.5, "3.5")]
)
def test_what_is_no_floating_point_type_is_one_line(dtype, found):
    for make in (lambda: load(BASES / "llama", dtype), lambda: tiny.model().astype(dtype)):
        with pytest.raises(Bad) as told:
            make()
        assert found in str(told.value) and "expected one of float32, float64, bfloat16" in str(told.value)


@pytest.mark.parametrize("dtype", ["float16", np.float16, np.dtype("float16")])
def test_nothing_is_computed_in_float16(dtype):
    model = tiny.model()
    halves = {k: v.astype(np.float16) for k, v in model.params.items()}
    for make in (
        lambda: load(BASES / "bert-mlm", dtype),  # a file in float16
        lambda: model.astype(dtype),
        lambda: dataclasses.replace(model, params=halves),
    ):
        with pytest.raises(Bad, match=r"float16: nothing is computed in it.*load\(folder, np.float32\)"):
            make()
    wide = load(BASES / "bert-mlm")
    assert {W.dtype for W in wide.params.values()} == {np.dtype(np.float32)}


def test_one_bit_changes_the_digest():
    model = tiny.model("llama", "bfloat16")
    name = "layers.0.attn.q.weight"
    bits = model.params[name].values.copy()
    bits[0, 0] ^= 1
    other = dataclasses.replace(model, params={**model.params, name: Bfloat16(bits)})
    assert other.digest() != model.digest()


# --- what is computed -----------------------------------------------------------------------------------------------


def site_of(adapted, module, x):
    return adapted.run().linear(module, x)


@pytest.mark.parametrize("module", ["layers.0.attn.qkv", "head"])
@pytest.mark.parametrize("method", [None, LoRA(r=2, targets="all-linear head.weight")], ids=["base", "lora"])
def test_a_linear_rounds_what_goes_in(module, method):
    """The tied head as well, by the token table as it is held; LoRA's own term sees x as it is."""
    model = tiny.model("gpt2", "bfloat16")
    adapted = Adapted(model) if method is None else laws.moved(attach(model, method))
    x = np.random.default_rng(0).standard_normal((3, 4, 24)).astype(np.float32)
    W = widened(model.params["embed.tokens.weight" if module == "head" else f"{module}.weight"]).astype(np.float64)
    b = model.params.get(f"{module}.bias", np.zeros(len(W)))
    exact, cond = cases.bfloat16(x).astype(np.float64) @ W.T + b, abs(x) @ abs(W).T + abs(b)
    low = 0.0
    if method is not None:
        own = adapted.adapter().grouped()[f"{module}.weight"]
        A, B = own["A"].astype(np.float64), own["B"].astype(np.float64)
        low, cond = method.scale * x @ A.T @ B.T, cond + method.scale * abs(x) @ abs(A).T @ abs(B).T
    got = site_of(adapted, module, x)
    assert (abs(got - (exact + low)) <= laws.K * U * cond).all()
    assert (abs(got - (x.astype(np.float64) @ W.T + b + low)) > laws.K * U * cond).any()  # it was rounded


@pytest.mark.parametrize("name", ["lora", "pissa", "adalora", "ia3", "oft", "vera", "prefix_tuning", "houlsby"])
def test_no_weight_is_widened_on_a_fast_path(name, monkeypatch):
    model = tiny.model("llama", "bfloat16")
    adapted, batch = attach(model, name), tiny.example(model)

    def refusing(W):
        assert type(W) is not Bfloat16
        return widened(W)

    for module in (running, protocol):
        monkeypatch.setattr(module, "widened", refusing)
    adapted.value_and_grad(batch)
    with pytest.raises(AssertionError):  # it makes V / ‖V‖
        attach(model, "dora").value_and_grad(batch)


@pytest.mark.parametrize("second", [LoRA(r=3), DoRA(r=3), TrainableTokens(tokens=(3, 5))], ids=lambda m: m.name)
def test_several_adapters_stack_up(second):
    model = tiny.model("gpt2", "bfloat16")
    both = attach(attach(model, LoRA(r=2), name="first"), second, name="second")
    for adapted in (both, both.using("second", "first"), both.using("first")):
        there = laws.moved(adapted)
        wide = dataclasses.replace(there, model=model.astype(np.float32))
        cond = laws.sensitivity(lambda m, t: Adapted(m).forward(tiny.example(m)).logits, model, {})
        laws.close(there.logits(tiny.example(model)), wide.logits(tiny.example(model)), cond, "logits", u=2.0**-8)


def test_qlora_quantises_what_is_held_in_bfloat16():
    model = tiny.model("llama", "bfloat16")
    adapted, wide = attach(model, QLoRA()), attach(model.astype(np.float32), QLoRA())
    name = "layers.0.attn.q.weight"
    assert type(adapted.model.params[name]) is FourBits
    assert (adapted.model.params[name].codes == wide.model.params[name].codes).all()
    assert type(adapted.model.params["embed.tokens.weight"]) is Bfloat16
    assert type(adapted.model.astype("bfloat16").params[name]) is FourBits
    x = np.ones((2, 24), np.float32)
    got, want = (site_of(a, "layers.0.attn.q", x) for a in (adapted, wide))
    np.testing.assert_array_equal(got, want)


def test_a_planted_error_is_found():
    """The laws of a base in bfloat16 are not so wide that a lost scale passes."""

    class Apart(Sum):
        def linear(self, x, base, drop=None):
            return Sum(tuple(dataclasses.replace(t, s=1.0) for t in self.terms)).linear(x, base)

    @dataclasses.dataclass(frozen=True)
    class Lost(LoRA, register=False):
        def change(self, *, A, B, c=None):
            return Apart(super().change(A=A, B=B).terms)

    for method, holds in ((LoRA(r=2, alpha=7.0), True), (Lost(r=2, alpha=7.0), False)):
        there = laws.case(method, "llama", "bfloat16")
        there = dataclasses.replace(there, moved=laws.moved(there.start, by=3.0))
        if holds:
            laws.forward_is_weight(there)
        else:
            with pytest.raises(Broken, match="forward against weight"):
                laws.forward_is_weight(there)


# --- merging and files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["all-linear", "embed.tokens.weight"])
def test_a_merged_weight_is_rounded_once(targets):
    model = tiny.model("gpt2", "bfloat16")
    adapted = laws.moved(attach(model, LoRA(r=2, targets=targets)))
    merged = merge(adapted)
    assert halves(merged) >= halves(model)
    for k, W in merged.params.items():
        if k in adapted.adapter().at:
            exact = adapted.run().param(k)
            assert (widened(W) == cases.bfloat16(exact)).all() and (widened(W) != widened(model.params[k])).any()
        elif k in model.params:
            assert W is model.params[k] or (model.params[k] == W).all()
    if targets == "embed.tokens.weight":  # the head stays as it was
        assert (merged.params["head.weight"].values == model.params["embed.tokens.weight"].values).all()


@pytest.mark.parametrize("name", ["qwen2", "t5-gated", "mistral", "gpt2", "vit"])
def test_files(name, tmp_path):
    """A checkpoint is held as bits, its file's where that is in bfloat16; written and read back they are the same."""
    model, wide = load(BASES / name, "bfloat16"), load(BASES / name)
    assert model.digest() == wide.astype("bfloat16").digest()
    if name in ("qwen2", "t5-gated"):
        assert model.astype(np.float32).digest() == wide.digest()
    config = json.loads((BASES / name / "config.json").read_text())
    for folder in ("once", "again"):
        save_model(model, tmp_path / folder, config)
        header = read_header(tmp_path / folder / "model.safetensors")
        assert {e["dtype"] for k, e in header.items() if k != "__metadata__"} == {"BF16", "F32"}
        assert sum(e["dtype"] == "BF16" for k, e in header.items() if k != "__metadata__") == len(halves(model))
        assert load(tmp_path / folder, "bfloat16").digest() == model.digest()
        assert load(tmp_path / folder, np.float32).digest() == model.astype(np.float32).digest()
    files = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("once", "again")]
    assert files[0] == files[1]


@pytest.mark.hf
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_torch_reads_the_file(name, tmp_path):
    import torch
    from safetensors.torch import load_file

    model = load(BASES / name, "bfloat16")
    save_model(model, tmp_path, json.loads((BASES / name / "config.json").read_text()))
    there = load_file(tmp_path / "model.safetensors")
    for k, W in model.params.items():
        module, _, leaf = k.rpartition(".")
        found = there[f"{model.names.theirs(module)}.{leaf}"]
        turned = model.names.is_transposed(module) and leaf == "weight"
        assert found.dtype == (torch.bfloat16 if k in halves(model) else torch.float32)
        np.testing.assert_array_equal((found.T if turned else found).float().numpy(), widened(W))


def test_training_and_the_classifier():
    model = with_head(tiny.model("llama", "bfloat16"), "classify", 3)
    batch = dataclasses.replace(tiny.example(model, padding="none"), labels=np.array([0, 1, 2]))
    adapted = attach(model, LoRA(r=2), train_whole=("score",))
    before = model.digest()
    done = fit(adapted, [batch], steps=8)
    assert done.losses[-1] < done.losses[0] and done.adapted.model.digest() == before
