import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.methods.lowrank.lora import LoRA


def moved(adapted):
    rng = np.random.default_rng(0)
    return adapted.replace({k: v + 0.1 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


@pytest.mark.parametrize(("rslora", "s"), [(False, 12 / 4), (True, 12 / 2)])
def test_the_change_is_s_b_a_of_rank_r(rslora, s):
    model, site = tiny.model("gpt2"), "layers.0.attn.qkv.weight"
    adapted = moved(attach(model, LoRA(r=4, alpha=12.0, rslora=rslora, lora_bias=True), targets=site))
    own, plain = adapted.adapters[0].grouped()[site], merge(adapted)
    change = plain.params[site] - model.params[site]
    assert np.allclose(change, s * own["B"] @ own["A"]) and np.linalg.matrix_rank(change) == 4
    bias = site.replace("weight", "bias")
    assert np.allclose(plain.params[bias] - model.params[bias], s * own["c"])


def test_dropout_acts_on_the_input_of_a_alone():
    model, p, site = tiny.model(), 0.5, "layers.0.attn.q.weight"
    adapted = moved(attach(model, LoRA(r=2, alpha=4.0, dropout=p), targets=site))
    own, W = adapted.adapters[0].grouped()[site], model.params[site]
    x = np.random.default_rng(0).standard_normal((1, 4, 24))
    got = adapted.run(train=True, rng=np.random.default_rng(3)).linear(site.removesuffix(".weight"), x)
    keep = np.random.default_rng(3).random(x.shape, dtype=np.float32) >= p
    assert np.allclose(got, x @ W.T + 2 * np.where(keep, x / (1 - p), 0) @ own["A"].T @ own["B"].T)


def test_a_tied_head_does_not_change_with_the_table():
    model = tiny.model("gpt2")
    plain = merge(moved(attach(model, LoRA(r=2), targets="embed.tokens.weight")))
    assert not plain.arch.tied and (plain.params["head.weight"] == model.params["embed.tokens.weight"]).all()
    assert (plain.params["embed.tokens.weight"] != model.params["embed.tokens.weight"]).any()


def test_refuses():
    with pytest.raises(Bad, match="lora: r must be at least 1, found 0"):
        LoRA(r=0)
    with pytest.raises(Bad, match=r"lora: dropout must lie in \[0, 1\), found 1"):
        LoRA(dropout=1)
    with pytest.raises(
        Bad, match=r"lora: expected linears and lookups, found layers.0.attn.q.bias, of kind bias and shape \(24,\)"
    ):
        attach(tiny.model("bert"), LoRA(), targets="attn.q.bias")
