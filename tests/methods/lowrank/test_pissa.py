from itertools import pairwise

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.lowrank.pissa import PiSSA

SITE = "layers.0.attn.v.weight"  # (12, 24)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_left_without_the_factors_is_the_minor_part(rslora):
    model = tiny.model()
    method = PiSSA(r=3, alpha=5.0, rslora=rslora)
    own = attach(model, method, targets=SITE).adapters[0].grouped()[SITE]
    residual = weight_of(method, model.params[SITE], own | dict(A=0 * own["A"], B=0 * own["B"]))
    sigma = np.linalg.svd(model.params[SITE], compute_uv=False)
    assert np.allclose(np.linalg.svd(residual, compute_uv=False), [*sigma[3:], 0, 0, 0], atol=1e-14)
    assert np.allclose(own["B"].T @ own["B"], np.diag(sigma[:3] / method.scale), atol=1e-14)
    assert np.allclose(own["A"] @ own["A"].T, np.diag(sigma[:3] / method.scale), atol=1e-14)


def test_dropout_spares_the_residual():
    model, p = tiny.model(), 0.5
    method = PiSSA(r=3, alpha=5.0, dropout=p)
    adapted = attach(model, method, targets=SITE)
    own, W = adapted.adapters[0].grouped()[SITE], model.params[SITE]
    x = np.random.default_rng(0).standard_normal((1, 4, 24))
    got = adapted.run(train=True, rng=np.random.default_rng(3)).linear(SITE.removesuffix(".weight"), x)
    keep = np.random.default_rng(3).random(x.shape, dtype=np.float32) >= p
    dropped = np.where(keep, x / (1 - p), 0)
    assert np.allclose(
        got, x @ (W - method.scale * own["B0"] @ own["A0"]).T + method.scale * dropped @ own["A"].T @ own["B"].T
    )


def test_embeddings_lose_nothing():
    own = attach(tiny.model(), PiSSA(), targets="embed.tokens.weight").adapters[0].grouped()["embed.tokens.weight"]
    assert not own["B"].any() and not own["B0"].any() and own["A"].any()


def principal_part(W, r):
    U, S, Vt = np.linalg.svd(W)
    return (U[:, :r] * S[:r]) @ Vt[:r]


def fast(model, niter, seed=0, site=SITE, **fields):
    method = PiSSA(r=3, alpha=5.0, factors="fast", niter=niter, **fields)
    own = attach(model, method, targets=site, seed=seed).adapters[0].grouped()[site]
    return method.scale * own["B"] @ own["A"], own


@pytest.mark.parametrize("site", [SITE, "layers.0.mlp.up.weight"])  # (12, 24), (40, 24): wide and tall
def test_random_directions_turn_into_the_principal_ones(site):
    """The distance to the part of rank r falls by (σ_{r+1}/σ_r)² each round; the first step is another one with every seed."""
    model = tiny.model()
    W = model.params[site]
    sigma, best = np.linalg.svd(W, compute_uv=False), principal_part(W, 3)
    far = [np.linalg.norm(fast(model, n, site=site)[0] - best) for n in (0, 4, 8, 12)]
    rate = (sigma[3] / sigma[2]) ** 8
    assert all(b < 1.5 * rate * a for a, b in pairwise(far[1:])) and far[0] > 0.1 * sigma[0]
    assert not np.allclose(fast(model, 0, seed=1, site=site)[0], fast(model, 0, site=site)[0])
    assert np.allclose(fast(model, 400, site=site)[0], best, atol=1e-12)


def test_fast_factors_are_balanced_and_leave_the_base_alone():
    model = tiny.model()
    part, own = fast(model, 1)
    assert np.allclose(own["A"] @ own["A"].T, own["B"].T @ own["B"], atol=1e-14)
    assert np.linalg.matrix_rank(part) == 3 and (own["A0"] == own["A"]).all() and (own["B0"] == own["B"]).all()
    batch = tiny.example(model)
    adapted = attach(model, PiSSA(r=3, factors="fast", niter=1))
    assert np.allclose(adapted.logits(batch), Adapted(model).logits(batch), atol=1e-12)


@pytest.mark.hf
@pytest.mark.parametrize("shape", [(12, 24), (24, 10)])
@pytest.mark.parametrize("niter", [0, 1, 5])
def test_peft_finds_the_same_from_the_same_directions(shape, niter, monkeypatch):
    import torch
    from peft import LoraConfig, get_peft_model

    from minipeft.engine.factors import sketched

    W = np.random.default_rng(1).standard_normal(shape)
    drawn = np.random.default_rng(2)
    A, B = sketched(W, 3, niter, np.random.default_rng(2))
    net = torch.nn.Sequential(torch.nn.Linear(shape[1], shape[0], bias=False))
    net[0].weight.data = torch.tensor(W, dtype=torch.float32)
    monkeypatch.setattr(
        torch, "randn", lambda *size, **options: torch.tensor(drawn.standard_normal(size), dtype=torch.float32)
    )
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights=f"pissa_niter_{niter}")
    theirs = get_peft_model(net, config).base_model.model[0]
    delta = (theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight).detach().numpy()
    assert np.allclose(B @ A, 2 * delta, atol=64 * 2.0**-24 * np.linalg.norm(W))
    assert np.allclose(W - B @ A, theirs.base_layer.weight.detach().numpy(), atol=64 * 2.0**-24 * np.linalg.norm(W))


def test_refuses():
    with pytest.raises(Bad, match=r"pissa: r must be at most 12, found 13 at layers.0.attn.v.weight"):
        attach(tiny.model(), PiSSA(r=13), targets=SITE)
    with pytest.raises(Bad, match="pissa: alpha must be positive"):
        PiSSA(alpha=0.0)
    with pytest.raises(Bad, match="pissa: niter must be at least 0, found -1"):
        PiSSA(niter=-1)
    with pytest.raises(Bad, match="pissa: lora_bias and start go with factors that are drawn"):
        PiSSA(start="gaussian")
    with pytest.raises(Bad, match=r"expected linears and lookups, found final.norm.weight"):
        attach(tiny.model(), PiSSA(), targets="final.norm.weight")


@pytest.mark.hf
def test_peft_finds_the_same_parts():
    import torch
    from peft import LoraConfig, get_peft_model

    model = tiny.model(dtype=np.float32)
    method = PiSSA(r=3, alpha=5.0)
    own = attach(model, method, targets=SITE).adapters[0].grouped()[SITE]
    net = torch.nn.Sequential(torch.nn.Linear(24, 12, bias=False))
    net[0].weight.data = torch.tensor(np.array(model.params[SITE]))
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["0"], init_lora_weights="pissa")
    theirs = get_peft_model(net, config).base_model.model[0]
    delta = (theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight).detach().numpy()
    assert np.allclose(own["B"] @ own["A"], delta, atol=1e-6)
    residual = theirs.base_layer.weight.detach().numpy()
    assert np.allclose(model.params[SITE] - method.scale * own["B0"] @ own["A0"], residual, atol=1e-6)


def test_switched_off_it_is_the_base():
    model = tiny.model()
    batch = tiny.example(model)
    assert (attach(model, PiSSA()).using().logits(batch) == Adapted(model).logits(batch)).all()
