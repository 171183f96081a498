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


def test_refuses():
    with pytest.raises(Bad, match=r"pissa: r must be at most 12, found 13 at layers.0.attn.v.weight"):
        attach(tiny.model(), PiSSA(r=13), targets=SITE)
    with pytest.raises(Bad, match="pissa: alpha must be positive"):
        PiSSA(alpha=0.0)
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
