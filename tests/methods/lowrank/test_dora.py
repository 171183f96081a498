import dataclasses

import numpy as np
import one_part
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.engine import gradients_flow
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.methods.lowrank.dora import DoRA


def moved(adapted):
    rng = np.random.default_rng(0)
    return adapted.replace({k: v + 0.1 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def test_the_magnitude_is_the_norm():
    model = tiny.model("gpt2")
    adapted = moved(attach(model, DoRA(r=2), targets="attn.qkv.weight embed.tokens.weight"))
    plain = merge(adapted)
    own = adapted.adapters[0].grouped()
    assert np.allclose(
        np.linalg.norm(plain.params["layers.0.attn.qkv.weight"], axis=1), own["layers.0.attn.qkv.weight"]["m"]
    )
    assert np.allclose(np.linalg.norm(plain.params["embed.tokens.weight"], axis=0), own["embed.tokens.weight"]["m_emb"])


def test_a_table_as_long_as_it_is_wide():
    model = tiny.model("gpt2")
    arch = dataclasses.replace(model.arch, max_positions=24)  # the width is 24
    model = dataclasses.replace(
        model, arch=arch, params={**model.params, "embed.positions.weight": model.params["embed.positions.weight"][:24]}
    )
    batch = tiny.example(model)
    start = attach(model, DoRA(r=2), targets="embed.positions.weight")
    assert np.allclose(start.logits(batch), Adapted(model).logits(batch), rtol=1e-12)
    after = moved(start)
    m = after.adapters[0].arrays["embed.positions.weight:m_emb"]
    assert np.allclose(np.linalg.norm(merge(after).params["embed.positions.weight"], axis=0), m)


def test_the_norm_is_a_constant_to_the_gradient():
    """dA = s Bᵀ diag(m/n) G, G being the gradient of W': n is held fixed (Liu et al., §4.3)."""
    model, site = tiny.model(), "layers.0.attn.v.weight"
    batch = tiny.example(model)
    adapted = moved(attach(model, DoRA(r=2, alpha=4.0), targets=site))
    own = adapted.adapters[0].grouped()[site]
    _, grads = adapted.value_and_grad(batch)
    V = model.params[site] + 2 * own["B"] @ own["A"]
    n = np.linalg.norm(V, axis=1)
    _, full = attach(model, "full", targets=site).value_and_grad(
        batch, {f"default/{site}:W1": V * (own["m"] / n)[:, None]}
    )
    G = full[f"default/{site}:W1"]
    assert np.allclose(
        grads[f"default/{site}:A"], 2 * own["B"].T @ (G * (own["m"] / n)[:, None]), rtol=1e-9, atol=1e-15
    )
    assert np.allclose(grads[f"default/{site}:m"], (G * V).sum(axis=1) / n, rtol=1e-9, atol=1e-15)
    with gradients_flow():
        _, free = adapted.value_and_grad(batch)
    other = attach(model, DoRA(r=2, alpha=4.0, grad="full"), targets=site).replace(adapted.theta)
    assert np.allclose(other.value_and_grad(batch)[1][f"default/{site}:A"], free[f"default/{site}:A"])
    assert not np.allclose(free[f"default/{site}:A"], grads[f"default/{site}:A"], rtol=1e-3)


def test_refuses():
    with pytest.raises(Bad, match="dora: grad must be 'detached' or 'full'"):
        DoRA(grad="none")
    with pytest.raises(Bad, match=r"dora: expected linears and lookups, found final.norm.weight"):
        attach(tiny.model(), DoRA(), targets="final.norm.weight")


@pytest.mark.parametrize("start", ["svd", "qr"])
def test_a_magnitude_over_a_residual(start):
    """DoRA of LoRA's W − s B0 A0 as base, by a closed form; in training, dropout leaves the residual's output alone."""
    model, name = tiny.model(), "layers.0.attn.q.weight"
    adapted = moved(attach(model, DoRA(r=2, alpha=3.0, start=start), targets=name))
    own, W = adapted.adapters[0].grouped()[name], model.params[name]
    if start == "svd":
        U, S, Vt = np.linalg.svd(W)
        first = (U[:, :2] * S[:2]) @ Vt[:2]  # s B0 A0
    else:
        Q, R = np.linalg.qr(W)
        first = 1.5 * Q[:, :2] @ R[:2]
    np.testing.assert_allclose(1.5 * own["B0"] @ own["A0"], first, atol=1e-12)
    V = W - first + 1.5 * own["B"] @ own["A"]
    want = own["m"][:, None] * V / np.linalg.norm(V, axis=1, keepdims=True)
    np.testing.assert_allclose(merge(adapted).params[name], want, atol=1e-12)
    x = np.random.default_rng(1).standard_normal((2, W.shape[1]))
    run = one_part.run(dataclasses.replace(adapted.adapters[0].method, dropout=0.5), own, W, train=True)
    run.keep = np.zeros(x.shape)  # everything is dropped
    np.testing.assert_allclose(run.linear("layers.0.attn.q", x), x @ (W - first).T, atol=1e-12)
    with pytest.raises(Bad, match="start must be one of zero, svd, qr, found 'pissa'"):
        DoRA(start="pissa")
