"""Folding adapters into weights."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.conformance import tiny
from minipeft.declare import Method, mapped, trained
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.scaling.ia3 import IA3

BASES = Path(__file__).parent / "data" / "bases"
load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))
FAMILIES = sorted(tiny.ARCHS)


def moved(adapted, by=0.1):
    rng = np.random.default_rng(5)
    return adapted.replace({k: x + by * rng.standard_normal(x.shape) for k, x in adapted.theta.items()})


def apart(a, b):
    return float(abs(a - b).max())


@settings(max_examples=12)
@given(st.sampled_from(FAMILIES), st.integers(1, 5), st.booleans(), st.sampled_from(["none", "all"]))
def test_merged_is_adapted(family, r, lora_bias, bias):
    model, batch = tiny.model(family), tiny.example(tiny.model(family))
    method = LoRA(r=r, lora_bias=lora_bias)
    adapted = moved(attach(model, method, targets="all-linear", bias=bias if not lora_bias else "none"))
    plain = merge(adapted)
    assert apart(Adapted(plain).logits(batch), adapted.logits(batch)) < 1e-11
    assert apart(Adapted(plain).logits(batch), Adapted(model).logits(batch)) > 1e-3
    assert merge(adapted.using()).digest() == model.digest()


OVER = {
    "lora": (lambda: LoRA(r=2, alpha=6, lora_bias=True), "all-linear"),
    "ia3": (IA3, "attn.v.weight attn.qkv.weight mlp.down.weight"),
    "trainable_tokens": (lambda: METHODS["trainable_tokens"](tokens=(3, 7), head_bias="drop"), "embed.tokens.weight"),
}


@pytest.mark.parametrize(
    ("family", "other"), [("gpt2", "lora"), ("bert", "lora"), ("gpt2", "ia3"), ("bert-mlm", "trainable_tokens")]
)
def test_a_bias_is_trained_beneath_what_a_weight_does_to_it(family, other):
    """As in PEFT, where the base's bias is trained and an adapter is around its linear; in either order of adapters."""
    model = tiny.model(family) if family in FAMILIES else load(BASES / family, np.float64)
    batch = tiny.example(model)
    make, targets = OVER[other]
    both = [("other", make(), dict(targets=targets)), ("biases", LoRA(r=2), dict(bias="all"))]
    for order in (both, both[::-1]):
        adapted = model
        for name, method, how in order:
            adapted = attach(adapted, method, name=name, **how)
        adapted = moved(adapted)
        plain = merge(adapted)
        assert apart(Adapted(plain).logits(batch), adapted.logits(batch)) < 1e-11
        if other == "lora":
            b, c = (adapted.theta[k] for k in ("biases/layers.0.mlp.up.bias:W1", "other/layers.0.mlp.up.weight:c"))
            np.testing.assert_allclose(plain.params["layers.0.mlp.up.bias"], b + 3 * c, rtol=1e-14)


@dataclass(frozen=True)
class Moving(Method, register=False):
    """W' = 2 W and b' = b + W c, of no bias too."""

    name = "moving"
    takes = "linears"
    c = trained("in")

    def change(self, *, c):
        return mapped(lambda W: 2 * W, lambda b, W: W @ c if b is None else b + W @ c)


@pytest.mark.parametrize("weights", [{}, dict(a=0.7, b=0.3)])
@pytest.mark.parametrize("family", ["llama", "bert"])  # without biases, and with
def test_a_bias_that_depends_on_the_weight_sees_the_one_beneath(family, weights):
    """Over another method that is W' of it; in a weighted sum every change is over the base."""
    model, batch = tiny.model(family), tiny.example(tiny.model(family))
    adapted = attach(attach(model, Moving(), name="a", targets="attn.v.weight"), LoRA(r=2), name="b")
    adapted = attach(adapted, Moving(), name="c", targets="attn.v.weight")
    adapted = moved(adapted.using(**weights) if weights else adapted)
    merged = Adapted(merge(adapted))
    assert apart(merged.logits(batch), adapted.logits(batch)) < 1e-11
    v = "layers.0.attn.v"
    W, b = (model.params.get(f"{v}.{leaf}", 0.0) for leaf in ("weight", "bias"))
    a, c = (adapted.adapter(n).arrays[f"{v}.weight:c"] for n in "ac")
    B, A = (adapted.adapter("b").arrays[f"{v}.weight:{n}"] for n in "BA")
    want = b + 0.7 * W @ a if weights else b + W @ a + (2 * W + 4 * B @ A) @ c
    np.testing.assert_allclose(merged.model.params[f"{v}.bias"], want, rtol=0, atol=1e-12)


def test_merging_breaks_a_tie_only_where_it_must():
    model, batch = tiny.model("gpt2"), tiny.example(tiny.model("gpt2"))
    adapted = moved(attach(model, LoRA(r=2), targets="embed.tokens.weight"))
    plain = merge(adapted)
    assert not plain.arch.tied and (plain.params["head.weight"] == model.params["embed.tokens.weight"]).all()
    assert apart(Adapted(plain).logits(batch), adapted.logits(batch)) < 1e-12
    assert merge(attach(model, LoRA(r=2), targets="c_attn")).arch.tied


def test_what_does_not_merge_is_named():
    with pytest.raises(Bad, match=r"adapter 'soft' \(prompt_tuning\) does not merge"):
        merge(attach(tiny.model(), "prompt_tuning", name="soft"))
