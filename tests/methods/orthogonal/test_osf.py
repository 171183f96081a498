import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.drawing import Facts, draw
from minipeft.engine import gradients_flow
from minipeft.errors import Bad
from minipeft.methods.orthogonal.osf import OSF

SITES = ["layers.0.attn.q.weight", "layers.0.attn.v.weight", "layers.0.mlp.down.weight", "layers.0.mlp.up.weight"]


def moved(adapted):
    rng = np.random.default_rng(0)
    return adapted.replace({k: v + 0.1 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


@pytest.mark.parametrize("site", SITES)
def test_gradients_are_projected(site):
    """Against the gradient of W' itself, by full fine-tuning, and projectors of an SVD with full matrices."""
    model = tiny.model()
    batch = tiny.example(model)
    adapted = moved(attach(model, OSF(), targets=site))
    own = adapted.adapters[0].grouped()[site]
    _, grads = adapted.value_and_grad(batch)
    whole = attach(model, "full", targets=site)
    W1 = model.params[site] - (own["U0"] * own["S0"]) @ own["V0"] + (own["U"] * own["S"]) @ own["V"]
    _, full = whole.value_and_grad(batch, {f"default/{site}:W1": W1})
    G = full[f"default/{site}:W1"]
    Q, _, Rt = np.linalg.svd(model.params[site])
    k = min(G.shape) // 2
    outside, inside = Q[:, k:] @ Q[:, k:].T, Rt[k:].T @ Rt[k:]
    dU, dV = outside @ (G @ own["V"].T * own["S"]), ((own["U"] * own["S"]).T @ G) @ inside
    dS = np.einsum("oi,ol,li->l", G, own["U"], own["V"])
    for name, want in dict(U=dU, V=dV, S=dS).items():
        assert np.allclose(grads[f"default/{site}:{name}"], want, rtol=1e-9, atol=1e-12 * abs(G).max())
    with gradients_flow():
        _, free = adapted.value_and_grad(batch)
    assert not np.allclose(free[f"default/{site}:U"], dU, rtol=1e-3)


@pytest.mark.parametrize(("rank", "k"), [(None, 6), (0.3, 3), (1.0, 12), (1, 1), (5, 5), (99, 12)])
def test_effective_rank(rank, k):
    own = attach(tiny.model(), OSF(effective_rank=rank), targets=SITES[1]).adapters[0].grouped()[SITES[1]]
    assert own["Uh"].shape == (12, k) and own["U"].shape == (12, 12 - k) and own["V"].shape == (12 - k, 24)
    assert np.allclose(own["Uh"].T @ own["Uh"], np.eye(k)) and np.allclose(own["Uh"].T @ own["U0"], 0)


def test_the_frozen_directions_are_the_largest():
    model = tiny.model()
    own = attach(model, OSF(effective_rank=4), targets=SITES[1]).adapters[0].grouped()[SITES[1]]
    sigma = np.linalg.svd(model.params[SITES[1]], compute_uv=False)
    assert np.allclose(own["S"], sigma[4:])
    assert np.allclose(np.linalg.norm(own["Uh"].T @ model.params[SITES[1]], axis=1), sigma[:4])


def test_refuses():
    for rank in (0, -1, 1.5, 0.0):
        with pytest.raises(Bad, match="osf: effective_rank must be a positive int"):
            OSF(effective_rank=rank)
    with pytest.raises(Bad, match=r"keeps none of 12 directions at layers.0.attn.v.weight"):
        attach(tiny.model(), OSF(effective_rank=0.01), targets=SITES[1])


@pytest.mark.hf
@pytest.mark.parametrize("shape", [(12, 24), (24, 12), (12, 12)])
def test_peft_projects_the_same(shape):
    import torch
    from peft import OSFConfig, get_peft_model

    from minipeft.engine import ops, value_and_grad
    from minipeft.method import Site

    rng = np.random.default_rng(0)
    W, x = rng.standard_normal(shape), rng.standard_normal((5, shape[1]))
    net = torch.nn.Sequential(torch.nn.Linear(shape[1], shape[0], bias=False).double())
    net[0].weight.data = torch.tensor(W)
    model = get_peft_model(net, OSFConfig(target_modules=["0"], effective_rank=4))
    theirs = model.base_model.model[0]
    params = theirs.osf_svd_params["default"]
    for p in params.values():
        p.data += 0.1 * torch.tensor(rng.standard_normal(p.shape))
    loss = (model(torch.tensor(x)) ** 3).sum()
    loss.backward()
    method = OSF(effective_rank=4)
    found = draw(Facts(method, Site("q.weight", shape, "linear", None, W), rng))
    stored = {n: a for n, (a, is_trained) in found.items() if not is_trained}
    theta = {n: params[f"{n}_low"].detach().numpy() for n in "USV"}

    def f(t):
        y = ops.linear(x, method.weight(W, **t, **stored))
        return ops.sum(y**3)

    ours, grads = value_and_grad(f)(theta)
    assert np.allclose(ours, loss.item(), rtol=1e-5)  # their decomposition is in float32
    for n in "USV":
        want = params[f"{n}_low"].grad.numpy()
        assert np.allclose(grads[n], want, atol=1e-5 * abs(want).max())
