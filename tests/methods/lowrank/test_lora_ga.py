import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.drawing import Facts
from minipeft.errors import Bad
from minipeft.methods.lowrank.lora_ga import LoRAGA, approximate

SITE = "layers.0.attn.v.weight"  # (12, 24)
DIRECTIONS = ["ArB2r", "A2rBr", "ArBr", "random"]


def gradient(model, batch):
    _, grads = attach(model, "full", targets=SITE).value_and_grad(batch)
    return next(iter(grads.values()))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_first_step_is_the_best_of_its_rank(direction):
    """B Bᵀ G + G Aᵀ A, which a first step of gradient descent adds to W, is the rank-2r part of G (theorem 3.1)."""
    model = tiny.model()
    batches = [tiny.example(model, seed=s) for s in (1, 2)]
    own = attach(model, LoRAGA(r=3, direction=direction), targets=SITE, data=batches).adapters[0].grouped()[SITE]
    G = sum(gradient(model, b) for b in batches) / 2
    U, S, Vt = np.linalg.svd(G)
    best = (U[:, :6] * S[:6]) @ Vt[:6]
    A, B, zeta2 = own["A"], own["B"], 12**0.5 / 16
    assert np.allclose(B @ B.T @ G + G @ A.T @ A, zeta2 * best, atol=1e-13)
    assert np.allclose(A @ A.T, zeta2 * np.eye(3)) and np.allclose(B.T @ B, zeta2 * np.eye(3))


def test_scales():
    model = tiny.model()
    batch = tiny.example(model)

    def norms(**fields):
        own = attach(model, LoRAGA(r=2, alpha=6.0, **fields), targets=SITE, data=[batch]).adapters[0].grouped()[SITE]
        return np.linalg.norm(own["A"][0]), np.linalg.norm(own["B"][:, 0])

    sigma = np.linalg.svd(model.params[SITE], compute_uv=False)
    S = np.linalg.svd(gradient(model, batch), compute_uv=False)
    assert np.allclose(norms(scale_by="unit"), 1)
    assert np.allclose(norms(scale_by="gd_scale"), 1 / 3)
    assert np.allclose(norms(scale_by="weight_svd"), np.sqrt(sigma[:2] / 3).mean())
    assert np.allclose(norms(scale_by="unit", reading="peft"), [1, S[2]])
    assert np.allclose(norms(scale_by="weight_svd", reading="peft"), [1, sigma[0]])
    assert np.allclose(norms(reading="peft", gamma=4.0), [1, S[2] * 12**0.25 / 2])


def test_refuses():
    with pytest.raises(Bad, match=r"direction must be one of .* found 'ArBR' \(did you mean ArBr"):
        LoRAGA(direction="ArBR")
    model = tiny.model()
    with pytest.raises(Bad, match=r"lora_ga: r must be at most 6, found 7 at layers.0.attn.v.weight"):
        attach(model, LoRAGA(r=7), targets=SITE, data=[tiny.example(model)])
    with pytest.raises(Bad, match="lora_ga measures grads"):
        attach(model, LoRAGA(r=2))


@pytest.mark.hf
@pytest.mark.parametrize("scale_by", ["stable", "weight_svd", "gd_scale", "unit"])
@pytest.mark.parametrize("direction", DIRECTIONS[:3])
def test_peft_starts_from_the_same_factors(direction, scale_by):
    import torch
    from peft import LoraConfig, LoraGAConfig, get_peft_model

    model = tiny.model(dtype=np.float32)
    G = gradient(tiny.model(), tiny.example(model)).astype(np.float32)
    method = LoRAGA(r=2, alpha=6.0, direction=direction, scale_by=scale_by, reading="peft")
    own = approximate(method, Facts(method, _site(model, G), np.random.default_rng(0)))
    net = torch.nn.Sequential(torch.nn.Linear(24, 12, bias=False))
    net[0].weight.data = torch.tensor(np.array(model.params[SITE]))
    net[0]._peft_loraga_grad = torch.tensor(G)
    start = LoraGAConfig(direction=direction, scale=scale_by)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["0"], init_lora_weights="lora_ga", lora_ga_config=start)
    torch.manual_seed(0)
    theirs = get_peft_model(net, config).base_model.model[0]
    A, B = (p["default"].weight.detach().numpy() for p in (theirs.lora_A, theirs.lora_B))
    loose = 1e-3 if scale_by == "weight_svd" else 2e-5  # their largest singular value of W is a randomised one
    assert np.allclose(abs(own["A"]), abs(A), rtol=loose, atol=loose * abs(A).max())
    assert np.allclose(abs(own["B"]), abs(B), rtol=loose, atol=loose * abs(B).max())


def _site(model, G):
    import dataclasses

    from minipeft.targets import sites

    return dataclasses.replace(sites(model)[SITE], grad=G)
