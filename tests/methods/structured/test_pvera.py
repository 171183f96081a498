"""A sampled middle between VeRA's matrices."""

import numpy as np
import one_part
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.drawing import Facts, draw
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.method import weight_of
from minipeft.methods.structured.pvera import PVeRA
from minipeft.methods.structured.vera import VeRA


def made(r=3, out=5, in_=4, seed=0, **options):
    rng = np.random.default_rng(seed)
    W, b, x = (rng.standard_normal(s) for s in ((out, in_), (out,), (2, 3, in_)))
    method = PVeRA(r=r, **options)
    return method, one_part.arrays(method, one_part.site(W), rng, moved=0.7), W, b, x


def test_the_first_half_is_vera_and_the_second_counts_for_nothing_in_evaluation():
    method, a, W, b, x = made()
    assert a["A"].shape == (6, 4) and a["B"].shape == (5, 3) and a["lambda_d"].shape == (6,)
    first = a | dict(A=a["A"][:3], lambda_d=a["lambda_d"][:3])
    np.testing.assert_array_equal(weight_of(method, W, a), weight_of(VeRA(r=3), W, first))
    np.testing.assert_allclose(
        one_part.output(method, a, x, W, b), one_part.output(VeRA(r=3), first, x, W, b), rtol=0, atol=1e-13
    )


def test_in_training_the_middle_is_normal_with_that_variance():
    """Mean and variance of the output over many passes are those of the closed form."""
    method, a, W, b, x = made()
    h = a["lambda_d"] * (x @ a["A"].T)
    mean, v = h[..., :3], h[..., 3:]
    rng, n = np.random.default_rng(1), 4000
    ys = np.array([one_part.output(method, a, x, W, b, train=True, rng=rng) for _ in range(n)])
    want = x @ W.T + b + a["lambda_b"] * (mean @ a["B"].T)
    spread = a["lambda_b"] ** 2 * (np.exp(v) @ (a["B"] ** 2).T)
    assert (abs(ys.mean(axis=0) - want) <= 5 * np.sqrt(spread / n) + 1e-12).all()
    np.testing.assert_allclose(ys.var(axis=0), spread, rtol=6 * (2 / n) ** 0.5)


@pytest.mark.parametrize("always", [False, True])
def test_evaluation_samples_where_it_is_asked_to_and_merging_takes_the_mean(always):
    model = tiny.model()
    batch = tiny.example(model)
    adapted = attach(model, PVeRA(r=3, sample_at_inference=always), targets="attn.q.weight")
    rng = np.random.default_rng(0)
    adapted = adapted.replace({k: v + rng.standard_normal(v.shape) for k, v in adapted.theta.items()})
    off = abs(adapted.logits(batch) - Adapted(merge(adapted)).logits(batch)).max()
    assert off > 1e-3 if always else off < 1e-12


def test_nothing_is_changed_before_training_though_it_is_sampled():
    method = PVeRA(r=3)
    W, x = (np.random.default_rng(0).standard_normal(s) for s in ((5, 4), (2, 3, 4)))
    a = one_part.arrays(method, one_part.site(W), np.random.default_rng(0))
    assert (a["lambda_d"] == 0.1).all() and not a["lambda_b"].any()
    got = one_part.output(method, a, x, W, train=True, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(got, one_part.output(method, a, x, W))


def test_tables_are_refused():
    with pytest.raises(Bad, match=r"pvera: expected linears, found embed\.tokens\.weight"):
        attach(tiny.model(), PVeRA(r=3), targets="embed.tokens.weight")


@pytest.mark.hf
@pytest.mark.parametrize(("out", "in_"), [(5, 4), (6, 11)])
@pytest.mark.parametrize(("r", "seed"), [(3, 0), (8, 7)])
@pytest.mark.parametrize("train", [False, True])
def test_the_pair_output_and_gradients_are_those_of_peft(out, in_, r, seed, train, monkeypatch):
    """In training, given the same noise."""
    import peft
    import torch

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((out, in_), (out,), (2, 3, in_), (2, 3, out)))
    noise = torch.tensor(np.random.default_rng(5).standard_normal((2, 3, r)))
    monkeypatch.setattr(torch, "randn_like", lambda x: noise)
    config = peft.PveraConfig(
        r=r, target_modules=["lin"], projection_prng_key=seed, d_initial=0.4, sample_at_inference=train
    )
    theirs = one_part.Peft(config, W, b, x, c)
    method = PVeRA(r=r, seed=seed, d_initial=0.4, sample_at_inference=train)
    pair = {k: a.astype(float) for k, (a, _) in draw(Facts(method, one_part.site(W), rng), shared=True).items()}
    for name, a in pair.items():
        assert (a == theirs.state[f"base_model.pvera_{name}.default"]).all()
    theta = dict(lambda_d=theirs.params["pvera_lambda_d"], lambda_b=theirs.params["pvera_lambda_b"])
    how = dict(train=train, rng=np.random.default_rng(5))
    y, grads = one_part.forward_and_grads(method, theta, pair, x, c, W, b, **how)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    for name, g in grads.items():
        want = theirs.grads[f"pvera_{name}"]
        np.testing.assert_allclose(g, want, rtol=0, atol=1e-13 * abs(want).max())
    assert grads["lambda_d"][r:].any() == train
    merged = theirs.merged()
    np.testing.assert_allclose(weight_of(method, W, theta | pair), merged, rtol=0, atol=1e-13 * abs(merged).max())
