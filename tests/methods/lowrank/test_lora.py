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


SITE = "layers.0.attn.v.weight"  # (12, 24)


def begun(r, start, seed=0, site=SITE, dtype=np.float64):
    return attach(tiny.model(dtype=dtype), LoRA(r=r, start=start), targets=site, seed=seed).adapters[0].grouped()[site]


def test_gaussian_has_the_deviation_of_the_rank_not_of_the_width():
    for r in (2, 8):
        drawn = np.concatenate([begun(r, "gaussian", seed)["A"].ravel() for seed in range(40)])
        assert abs(drawn.std() * r - 1) < 4 / (2 * drawn.size) ** 0.5  # four deviations of a sample's deviation
        assert not begun(r, "gaussian")["B"].any()


@pytest.mark.parametrize("r", [1, 3, 4, 10])
def test_orthogonal_factors_cancel_and_neither_is_zero(r):
    own = begun(r, "orthogonal")
    u, sizes = 2.0**-53, np.linalg.norm(own["B"]) * np.linalg.norm(own["A"])
    assert np.linalg.norm(own["B"] @ own["A"]) <= 8 * r * u * sizes and own["A"].any() and own["B"].any() == (r > 1)
    assert np.linalg.matrix_rank(own["A"]) == (r + 1) // 2 and np.linalg.matrix_rank(own["B"]) == r // 2
    drawn = np.concatenate([begun(4, "orthogonal", seed)["A"].ravel() for seed in range(40)])
    assert abs(drawn.std() * 10 * 2**0.5 - 1) < 0.05  # half of the directions, each a tenth


def test_an_embedding_starts_in_one_way():
    site = "embed.tokens.weight"
    usual, *others = (begun(2, start, site=site) for start in ("uniform", "gaussian", "orthogonal"))
    assert all((own[k] == usual[k]).all() for own in others for k in "AB") and not usual["B"].any()


@pytest.mark.hf
@pytest.mark.parametrize("r", [2, 6])
def test_peft_draws_the_same_orthogonal_factors(r):
    """From the same normal numbers: torch's, after those of the two linears' own starts."""
    import torch
    from peft import LoraConfig, get_peft_model

    from minipeft.drawing import Facts, draw
    from minipeft.targets import sites
    from minipeft.torch_random import TorchGenerator

    class Drawn:
        def __init__(self):
            self.torch = TorchGenerator(3)
            self.torch.uniform((r * 24 + 12 * r,))

        def standard_normal(self, shape):
            return self.torch.normal(shape).astype(np.float64)

    net = torch.nn.Sequential(torch.nn.Linear(24, 12, bias=False))
    torch.manual_seed(3)
    theirs = get_peft_model(
        net, LoraConfig(r=r, target_modules=["0"], init_lora_weights="orthogonal")
    ).base_model.model[0]
    found = draw(Facts(LoRA(r=r, start="orthogonal"), sites(tiny.model())[SITE], Drawn()))
    for k, p in dict(A=theirs.lora_A, B=theirs.lora_B).items():
        assert np.allclose(found[k][0], p["default"].weight.detach().numpy(), rtol=0, atol=64 * 2.0**-24)


@pytest.mark.hf
def test_pefts_gaussian_has_the_same_deviation():
    import torch
    from peft import LoraConfig, get_peft_model

    net = torch.nn.Sequential(torch.nn.Linear(400, 12))
    A = (
        get_peft_model(net, LoraConfig(r=8, target_modules=["0"], init_lora_weights="gaussian"))
        .base_model.model[0]
        .lora_A
    )
    assert abs(A["default"].weight.std().item() * 8 - 1) < 4 / (2 * 3200) ** 0.5


def test_refuses():
    with pytest.raises(Bad, match="lora: r must be at least 1, found 0"):
        LoRA(r=0)
    with pytest.raises(Bad, match=r"lora: dropout must lie in \[0, 1\), found 1"):
        LoRA(dropout=1)
    with pytest.raises(
        Bad, match=r"lora: expected linears and lookups, found layers.0.attn.q.bias, of kind bias and shape \(24,\)"
    ):
        attach(tiny.model("bert"), LoRA(), targets="attn.q.bias")
