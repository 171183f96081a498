"""Weights on several adapters at once: W' = W + Σ w (W'_a − W), every change measured from the base."""

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints.native import load_adapter, save_adapter
from minipeft.conformance import tiny
from minipeft.conformance.laws import K
from minipeft.engine.gradcheck import gradcheck
from minipeft.errors import Bad
from minipeft.interop.peft.writing import save_peft
from minipeft.merging import merge
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.dora import DoRA
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.scaling.ia3 import IA3
from minipeft.model.sensitivity import sensitivity
from minipeft.settings import small

load_methods()
Q = "layers.0.attn.q.weight"
U = 2.0**-53


def moved(adapted, seed=5):
    rng = np.random.default_rng(seed)
    return adapted.replace({k: x + 0.1 * rng.standard_normal(x.shape) for k, x in adapted.theta.items()})


def two(model, a, b, **options):
    """Two adapters, a and b, both moved from their start."""
    return moved(attach(attach(model, a, name="a", **options), b, name="b", **options))


def close(got, want, scale=1.0):
    assert got.shape == want.shape
    assert abs(got - want).max() <= K * U * scale * (1 + abs(want).max())


def test_the_sum_of_two_loras_is_the_sum_of_their_products():
    model = tiny.model()
    both = two(model, LoRA(r=2, alpha=6.0), LoRA(r=3, alpha=2.0, rslora=True), targets="q_proj")
    a, b = (x.grouped()[Q] for x in both.adapters)
    want = model.params[Q] + 0.7 * 3.0 * a["B"] @ a["A"] - 0.3 * (2 / 3**0.5) * b["B"] @ b["A"]
    close(merge(both.using(a=0.7, b=-0.3)).params[Q], want)
    x = np.random.default_rng(0).standard_normal((2, 3, 24))
    close(both.using(a=0.7, b=-0.3).run().linear("layers.0.attn.q", x), x @ want.T, 24)


def test_whole_parameters_are_averaged():
    """Two classifiers at 0.7 and 0.3 are their mean so weighted, whatever the base had there."""
    model = tiny.model("bert")
    both = two(model, "full", "full", targets="score.weight score.bias")
    one, other = (x.arrays["score.weight:W1"] for x in both.adapters)
    close(merge(both.using(a=0.7, b=0.3)).params["score.weight"], 0.7 * one + 0.3 * other)


def test_dora_is_measured_from_the_base_so_that_order_does_not_matter():
    model = tiny.model()
    both = two(model, DoRA(r=2, alpha=3.0), DoRA(r=3, alpha=3.0), targets="q_proj")
    W = model.params[Q]

    def alone(adapter, s):
        own = adapter.grouped()[Q]
        V = W + s * own["B"] @ own["A"]
        return V * (own["m"] / np.sqrt((V * V).sum(axis=1)))[:, None]

    want = W + 0.5 * (alone(both.adapters[0], 1.5) - W) + 2.0 * (alone(both.adapters[1], 1.0) - W)
    close(merge(both.using(a=0.5, b=2.0)).params[Q], want)
    close(merge(both.using(b=2.0, a=0.5)).params[Q], want)
    assert abs(merge(both).params[Q] - merge(both.using(a=1.0, b=1.0)).params[Q]).max() > 1e-3  # those stack up


def test_an_activation_takes_its_share_of_the_change():
    model = tiny.model()
    site = "layers.1.mlp.out"
    both = two(model, "houlsby", "houlsby", targets="mlp.out")
    h = np.random.default_rng(0).standard_normal((2, 3, 24))

    def change(adapter):
        own = adapter.grouped()[site]
        z = h @ own["Wd"].T + own["bd"]
        return (z / (1 + np.exp(-z))) @ own["Wu"].T + own["bu"]

    want = h + 0.25 * change(both.adapters[0]) - 1.5 * change(both.adapters[1])
    close(both.using(a=0.25, b=-1.5).run().at(site, h), want, 24)


MIXES = {
    "lora and dora": ("llama", LoRA(r=2), DoRA(r=2), {}),
    "lora_bias and ia3": ("gpt2", LoRA(r=2, lora_bias=True), IA3(), {}),
    "lora_bias on no bias": ("llama", LoRA(r=2, lora_bias=True), LoRA(r=1), dict(targets="q_proj")),
    "lora and bitfit": ("bert", LoRA(r=2), METHODS["bitfit"](), {}),
    "oft and full": ("llama", METHODS["oft"](block=4, r=0), METHODS["full"](), {}),
    "tokens of a tied head": ("gpt2", METHODS["trainable_tokens"](tokens=(3, 5)), METHODS["full"](targets="embed.tokens.weight"), {}),
    "tokens and a head": ("t5", METHODS["trainable_tokens"](tokens=(3, 5)), LoRA(r=2, targets="embed.tokens.weight head.weight"), {}),
    "all biases": ("bert", LoRA(r=2), LoRA(r=1), dict(bias="all")),
}  # fmt: skip


@pytest.mark.parametrize("mix", MIXES)
def test_what_runs_is_what_merges(mix):
    family, a, b, options = MIXES[mix]
    model = tiny.model(family)
    both = two(model, a, b, **options).using(a=0.7, b=-0.4)
    batch = tiny.example(model)
    plain = merge(both)
    cond = sensitivity(lambda m, _: Adapted(m).logits(batch), plain, {})
    assert abs(Adapted(plain).logits(batch) - both.logits(batch)).max() <= 4 * K * U * cond
    assert abs(both.logits(batch) - both.using("a", "b").logits(batch)).max() > 1e-3


@pytest.mark.parametrize(
    ("a", "b"), [("lora", "pfeiffer"), ("poly", "lora"), ("loreft", "ia3"), ("parallel_adapter", "llama_adapter")]
)
def test_gradients(a, b):
    model = tiny.model()
    both = two(model, small(METHODS[a], model.arch), small(METHODS[b], model.arch)).using(a=0.6, b=-1.3)
    batch = tiny.example(model, tasks=getattr(both.adapters[0].method, "n_tasks", 1))
    gradcheck(lambda t: both.loss(t, batch), both.theta, step=1e-5, group=lambda k: k[0] + k.rpartition(":")[2])


def test_one_and_nothing():
    model = tiny.model()
    both, batch = two(model, LoRA(r=2), IA3()), tiny.example(model)
    np.testing.assert_array_equal(both.using(a=1.0).logits(batch), both.using("a").logits(batch))
    np.testing.assert_array_equal(both.using(a=0.0, b=0.0).logits(batch), both.using().logits(batch))
    close(both.using("a", b=0.5).logits(batch), both.using(b=0.5, a=1.0).logits(batch), 100)
    assert both.using(a=0.5).using("a", "b").weights == {}
    assert "0.5 × lora" in repr(both.using(a=0.5))


def test_a_prefix_counts_once_beside_a_weighted_adapter():
    model = tiny.model()
    both, batch = two(model, "prefix_tuning", LoRA(r=2)), tiny.example(model)
    scaled = both.replace({k: v * 0.5 if k.endswith(":B") else v for k, v in both.theta.items()})
    close(both.using("a", b=0.5).logits(batch), scaled.logits(batch), 100)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("prefix_tuning", r"adapter 'a' \(prefix_tuning\) takes no weight but 1, found 0.5"),
        ("prompt_tuning", r"\(prompt_tuning\) takes no weight but 1"),
        ("p_tuning", r"\(p_tuning\) takes no weight but 1"),
    ],
)
def test_what_has_no_share(method, says):
    both = attach(tiny.model(), method, name="a")
    with pytest.raises(Bad, match=says):
        both.using(a=0.5)
    assert both.using(a=1.0).active == ("a",)


@pytest.mark.parametrize(
    ("names", "weights", "says"),
    [
        ((), dict(c=1.0), "adapter 'c' is not attached; attached: a, b"),
        ((), dict(a=float("nan")), "expected a finite number as its weight, found nan"),
        ((), dict(a="0.5"), "expected a finite number as its weight, found '0.5'"),
        ((), dict(a=True), "expected a finite number as its weight, found True"),
        (("a",), dict(a=0.5), "adapter 'a' is named twice"),
    ],
)
def test_mistakes(names, weights, says):
    both = two(tiny.model(), LoRA(r=2), IA3())
    with pytest.raises(Bad, match=says):
        both.using(*names, **weights)


def test_a_saved_adapter_keeps_its_weight(tmp_path):
    model = tiny.model()
    batch = tiny.example(model)
    both = two(model, LoRA(r=2), LoRA(r=3)).using(a=0.7, b=0.3)
    for name in "ab":
        save_adapter(both, tmp_path / name, name)
    loaded = load_adapter(load_adapter(model, tmp_path / "a"), tmp_path / "b")
    assert loaded.weights == {"a": 0.7, "b": 0.3}
    np.testing.assert_array_equal(loaded.logits(batch), both.logits(batch))
    with pytest.raises(Bad, match=r"adapter 'a' has the weight 0\.7, for which PEFT's files have no place"):
        save_peft(both, tmp_path / "p", "a")
    assert not (tmp_path / "p").exists()
