import numpy as np
import pytest
from one_part import arrays, forward_and_grads, output, site

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.methods.lowrank.mica import MiCA
from minipeft.train import AdamW, fit

WIDE, TALL, TABLE = "layers.0.attn.v.weight", "layers.0.mlp.up.weight", "embed.tokens.weight"  # (12, 24), (40, 24)


def moved(adapted):
    rng = np.random.default_rng(0)
    return adapted.replace({k: v + 0.1 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


@pytest.mark.parametrize("site", [WIDE, TALL])
def test_b_is_what_the_weight_uses_least(site):
    """Orthonormal columns, of which each is carried by its singular value: ‖Wᵀ b_i‖ = σ_i, the last r of min(in, out)."""
    model, r = tiny.model(), 3
    W, own = model.params[site], attach(model, MiCA(r=r), targets=site).adapters[0].grouped()[site]
    sigma = np.linalg.svd(W, compute_uv=False)
    assert np.allclose(own["B"].T @ own["B"], np.eye(r), atol=1e-14) and not own["A"].any()
    assert np.allclose(np.linalg.norm(W.T @ own["B"], axis=0), sigma[-r:], atol=1e-14) and sigma[-r] < sigma[-r - 1]


def test_an_embedding_keeps_the_other_factor():
    model, r = tiny.model(), 3
    E, adapted = model.params[TABLE], attach(model, MiCA(r=r), targets=TABLE)
    own = adapted.adapters[0].grouped()[TABLE]
    assert np.allclose(own["A_emb"] @ own["A_emb"].T, np.eye(r), atol=1e-14) and not own["B_emb"].any()
    assert np.allclose(np.linalg.norm(E @ own["A_emb"].T, axis=0), np.linalg.svd(E, compute_uv=False)[-r:], atol=1e-14)
    assert adapted.adapters[0].trained == {f"{TABLE}:B_emb"}


def test_training_stays_in_the_minor_directions():
    """Whatever is trained, the principal left directions see nothing of it; and half as much is trained as by LoRA, or less."""
    model, r = tiny.model(), 3
    adapted = attach(model, MiCA(r=r, alpha=6.0), targets=WIDE)
    assert adapted.adapters[0].trained == {f"{WIDE}:A"} and adapted.adapters[0].size == r * 24
    trained = fit(adapted, [tiny.example(model)], steps=5, optimiser=AdamW(lr=0.1, weight_decay=0.1)).adapted
    change = merge(trained).params[WIDE] - model.params[WIDE]
    U = np.linalg.svd(model.params[WIDE])[0]
    assert np.allclose(U[:, :-r].T @ change, 0, atol=1e-14) and np.linalg.matrix_rank(change, tol=1e-10) == r
    before, after = (a.adapters[0].arrays[f"{WIDE}:B"] for a in (adapted, trained))
    assert before.tobytes() == after.tobytes()


def test_refuses():
    with pytest.raises(Bad, match=r"mica: r must be at most 12, found 13 at layers.0.attn.v.weight"):
        attach(tiny.model(), MiCA(r=13), targets=WIDE)
    with pytest.raises(Bad, match="mica: lora_bias and start go with factors that are drawn"):
        MiCA(lora_bias=True)
    with pytest.raises(Bad, match=r"expected finite numbers to decompose, found 288 of 288 NaN"):
        model = tiny.model()
        model = model.__class__(model.arch, {**model.params, WIDE: np.full((12, 24), np.nan)}, model.names)
        attach(model, MiCA(r=2), targets=WIDE)


@pytest.mark.hf
@pytest.mark.parametrize("shape", [(12, 24), (24, 10)])
def test_peft_trains_the_same_factor_of_the_same_space(shape):
    """The projector on B's columns in float32; then, from PEFT's own arrays, outputs, gradients and the merged weight."""
    import torch
    from peft import LoraConfig, get_peft_model

    rng, method = np.random.default_rng(4), MiCA(r=3, alpha=5.0)
    W, b, x = rng.standard_normal(shape), rng.standard_normal(shape[0]), rng.standard_normal((2, 3, shape[1]))
    net = torch.nn.Sequential(torch.nn.Linear(shape[1], shape[0]))
    net[0].weight.data, net[0].bias.data = torch.tensor(W).float(), torch.tensor(b).float()
    model = get_peft_model(net, LoraConfig(r=3, lora_alpha=5, target_modules=["0"], init_lora_weights="mica"))
    B = model.base_model.model[0].lora_B["default"].weight.detach().double().numpy()
    own = arrays(method, site(W), rng)
    assert np.allclose(own["B"] @ own["B"].T, B @ B.T, atol=1e-5)
    model.double()
    net[0].base_layer.weight.data, net[0].base_layer.bias.data = torch.tensor(W), torch.tensor(b)
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    assert [k.split("lora_")[1][0] for k in trained] == ["A"]
    (p,) = trained.values()
    A, c = rng.standard_normal((3, shape[1])), rng.standard_normal((2, 3, shape[0]))
    p.data = torch.tensor(A)
    y = model(torch.tensor(x))
    (y * torch.tensor(c)).sum().backward()
    given = dict(A=A, B=B)
    got, grads = forward_and_grads(method, dict(A=A), dict(B=B), x, c, W, b)
    assert np.allclose(got, y.detach().numpy(), rtol=0, atol=1e-12) and grads.keys() == {"A"}
    assert np.allclose(output(method, given, x, W, b), y.detach().numpy(), rtol=0, atol=1e-12)
    assert np.allclose(grads["A"], p.grad.numpy(), rtol=0, atol=1e-11)
    merged = model.merge_and_unload()[0].weight.detach().numpy()
    assert np.allclose(method.change(**given).onto(W), merged, rtol=0, atol=1e-12)
