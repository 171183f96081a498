import numpy as np
import one_part
import pytest
from scipy import special

from minipeft.engine import gradcheck
from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.lowrank.monteclora import MonteCLoRA

RNG = np.random.default_rng(0)


def drawn(method, out=5, in_=7, moved=0.5):
    return one_part.arrays(method, one_part.site(np.zeros((out, in_))), np.random.default_rng(1), moved=moved)


def sampled(method, a, seed, in_=7):
    """A with its noise, as it reaches the output: W is 0, B and x are the identity."""
    r = len(a["sigma"])
    given = {**a, "B": np.eye(r)}
    rng = np.random.default_rng(seed)
    return one_part.output(method, given, np.eye(in_), np.zeros((r, in_)), train=True, rng=rng).T / method.scale


def test_starts():
    a = drawn(MonteCLoRA(r=40, N=6), moved=0.0)  # a rank beyond both sides
    assert {k: v.shape for k, v in a.items()} == dict(A=(40, 7), B=(5, 40), sigma=(40,), p=(6,), V=(40, 40), w=(6,))
    assert not a["B"].any() and (a["V"] == np.eye(40)).all() and (a["w"] == 1 / 6).all()
    assert a["sigma"].min() >= 0 and 0.8 < a["sigma"].max() < 1 and a["p"].min() >= 0 and a["p"].max() < 1


def test_evaluation_and_merging_know_of_no_samples():
    method = MonteCLoRA(r=3, alpha=6.0, spread=10.0)
    a = drawn(method)
    W, x = RNG.standard_normal((5, 7)), RNG.standard_normal((2, 7))
    assert np.allclose(weight_of(method, W, a), W + 2 * a["B"] @ a["A"])
    np.testing.assert_allclose(one_part.output(method, a, x, W), x @ (W + 2 * a["B"] @ a["A"]).T, atol=1e-13)


def test_training_has_its_own_noise_in_every_pass_with_the_mean_a_and_the_variance_said():
    """Given w and V independent of E, noise has the mean 0 and in row i the variance ε² E Σ w² e^2σ_i r: no floor acts here."""
    method = MonteCLoRA(r=3, N=4, spread=0.5)
    a = drawn(method)
    every = np.array([sampled(method, a, seed) for seed in range(3000)]) - a["A"]
    assert abs(every[0] - every[1]).min() > 0
    n = every.shape[0] * every.shape[2]
    row = every.swapaxes(0, 1).reshape(3, -1)
    assert (abs(row.mean(axis=1)) < 5 * row.std(axis=1) / n**0.5).all()
    shares = row.var(axis=1) / (0.25 * np.exp(2 * a["sigma"]) * 3)
    assert shares.min() > 0.25 and shares.max() < 1  # Σ w², the same in every row
    assert shares.max() / shares.min() < 1.25


def test_without_spread_training_is_lora():
    method = MonteCLoRA(r=3, spread=0.0)
    a = drawn(method)
    np.testing.assert_allclose(sampled(method, a, 0), a["A"], atol=1e-14)


def test_the_weights_are_those_of_a_dirichlet_nearly():
    """Laplace: for large a the softmax has the mean a/Σa."""
    method, p = MonteCLoRA(r=1, N=3, spread=1.0), np.log([900.0, 300.0, 600.0])
    a = drawn(method) | dict(p=p)

    class Rng:
        def __init__(self, seed):
            self.own = np.random.default_rng(seed)

        def standard_normal(self, shape):
            if shape == (3, 7):  # E: the number of the sample, in its own column
                return np.eye(3, 7)
            return np.ones(shape) if shape == (1, 1) else self.own.standard_normal(shape)

    given = {**a, "B": np.eye(1), "sigma": np.zeros(1)}
    made = [
        one_part.output(method, given, np.eye(7), np.zeros((1, 7)), train=True, rng=Rng(i))[:3, 0] / method.scale
        - a["A"][0, :3]
        for i in range(400)
    ]
    np.testing.assert_allclose(np.sum(made, axis=1), 1, atol=1e-13)
    np.testing.assert_allclose(np.mean(made, axis=0), [0.5, 1 / 6, 1 / 3], atol=4e-3)


def divergence(a, prior):
    return (
        special.gammaln(a.sum()) - special.gammaln(a).sum() - special.gammaln(prior.sum()) + special.gammaln(prior).sum()
        + ((a - prior) * (special.digamma(a) - special.digamma(a.sum()))).sum()
    )  # fmt: skip


@pytest.mark.parametrize("r", [1, 3])
def test_the_penalty_is_the_mean_of_divergences(r):
    """That of the weights from scipy; of the Wishart as PEFT has it; of the normal from many samples."""
    method = MonteCLoRA(r=r, N=4, kl=1.0, prior=0.3)
    one, two = drawn(method), drawn(method) | dict(sigma=np.full(r, -0.2), p=np.full(4, np.log(0.3)))

    def expected(a):
        s, z = a["sigma"], np.random.default_rng(0).chisquare(r, (200_000, r))
        normal = 2 * (np.exp(2 * s) * z - 2 * s - np.log(z) - 1).sum(axis=1)
        wishart = 0.5 * (r * np.exp(2 * s).sum() - r * 2 * s.sum() - r * r)
        fixed = divergence(np.exp(a["p"]), np.full(4, 0.3)) + wishart
        return fixed + normal.mean(), normal.std() / len(z) ** 0.5

    (x, e), (y, f) = expected(one), expected(two)
    assert abs(method.penalty({"a": one, "b": two}) - (x + y) / 2) < 5 * (e + f)
    gradcheck(lambda t: method.penalty({"a": {**one, **t}}), dict(sigma=one["sigma"], p=one["p"]))


def test_the_entropy_is_the_expected_sum_of_squares():
    method = MonteCLoRA(r=2, N=3, kl=0.0, entropy=True)
    a = drawn(method)
    squares = (np.random.default_rng(0).dirichlet(np.exp(a["p"]), 200_000) ** 2).sum(axis=1)
    assert abs(method.penalty({"a": a}) - squares.mean()) < 5 * squares.std() / len(squares) ** 0.5
    assert MonteCLoRA(N=3, kl=0.0).penalty({"a": a}) is None


def test_one_sample_has_all_the_weight():
    method = MonteCLoRA(r=2, N=1, spread=1.0)
    gradcheck(lambda t: (sampled(method, {**drawn(method), **t}, 3) ** 2).sum(), dict(sigma=drawn(method)["sigma"]))


def test_bad_settings_are_named():
    with pytest.raises(Bad, match="prior must be positive"):
        MonteCLoRA(prior=0.0)
    with pytest.raises(Bad, match="N must be at least 1"):
        MonteCLoRA(N=0)


@pytest.mark.hf
@pytest.mark.parametrize("N", [1, 2, 5])
@pytest.mark.parametrize(("out", "in_"), [(5, 7), (6, 3)])
@pytest.mark.parametrize("lora_bias", [False, True])
def test_a_sampled_pass_and_its_gradients_are_those_of_peft(N, out, in_, lora_bias, monkeypatch):
    """With the same numbers."""
    import peft
    import torch

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # it takes roots in float32
    W, b, x, c = (RNG.standard_normal(s) for s in ((out, in_), (out,), (2, 3, in_), (2, 3, out)))
    own = peft.MontecloraConfig(num_samples=N, sample_scaler=0.7, buffer_size=1)
    config = peft.LoraConfig(r=4, lora_alpha=5, lora_bias=lora_bias, monteclora_config=own, target_modules=["lin"])
    theirs = one_part.Peft(config, W, b, x, c)
    drawn = np.random.default_rng(7)
    z, G, q = (drawn.standard_normal(s) for s in ((N, in_ * 4), (4, 4), (1, N)))
    given = dict(z_mvn=z.reshape(N, in_, 4), z_wishart=G @ G.T, z_dirichlet=q[0])
    layer = theirs.model.base_model.model.lin
    monkeypatch.setattr(
        layer.lora_monteclora_sampler["default"].sampler, "get", lambda: {k: torch.tensor(v) for k, v in given.items()}
    )
    theirs.model.train().zero_grad()
    y = theirs.model(torch.tensor(x))
    (y * torch.tensor(c)).sum().backward()
    keys = dict(A="lora_A.weight", B="lora_B.weight", c="lora_B.bias")
    keys |= {k: f"lora_monteclora_sampler.{v}" for k, v in (("sigma", "std_prior"), ("p", "expert_weights_prior"))}
    theta = {k: theirs.params[v] for k, v in keys.items() if v in theirs.params}
    assert set(theirs.params) == {keys[k] for k in theta}
    grads = {theirs._short(k): p.grad.numpy() for k, p in theirs.model.named_parameters() if p.grad is not None}
    method = MonteCLoRA(r=4, alpha=5.0, N=N, spread=0.7, lora_bias=lora_bias)
    rest = dict(V=np.eye(4), w=np.full(N, 1 / N))
    ours, slopes = one_part.forward_and_grads(method, theta, rest, x, c, W, b, train=True, rng=np.random.default_rng(7))
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=0, atol=1e-13 * abs(ours).max())
    for k in theta:
        scale = max(abs(grads[keys[k]]).max(), abs(grads[keys["B"]]).max())
        np.testing.assert_allclose(slopes[k], grads[keys[k]], rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(
        weight_of(method, W, {**theta, **rest}), theirs.merged(), rtol=0, atol=1e-13 * abs(W).max() * 10
    )
