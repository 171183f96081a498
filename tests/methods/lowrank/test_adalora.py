import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import Step, weight_of
from minipeft.methods.lowrank.adalora import AdaLoRA, ranks
from minipeft.train import AdamW, fit

SHAPES = {"a": (5, 4), "b": (3, 6)}


def random_steps(r, total, seed=0):
    """Arrays and gradients of every step: {site: {name: array}} twice."""
    rng = np.random.default_rng(seed)
    for t in range(1, total + 1):
        draw = lambda: {
            s: dict(P=rng.standard_normal((o, r)), lam=rng.standard_normal(r), Q=rng.standard_normal((r, i)))
            for s, (o, i) in SHAPES.items()
        }
        yield t, draw(), draw()


def test_schedule():
    method = AdaLoRA(r=12, target_r=8, tinit=2, tfinal=3)
    got = [method.budget(t, 15, 24, 16) for t in (1, 2, 3, 7, 12, 15)]
    assert got == [24, 24, int(8 * 0.9**3 + 16), 17, 16, 16]


def test_the_allocator_follows_the_equations():
    """Number by number, with Python's own arithmetic."""
    r, target, total, tinit, tfinal, every = 4, 2, 12, 2, 3, 2
    method = AdaLoRA(r=r, target_r=target, tinit=tinit, tfinal=tfinal, deltaT=every)
    mean, unc, state, kept = {}, {}, {}, None
    for t, theta, grads in random_steps(r, total):
        expected = {s: own["lam"].copy() for s, own in theta.items()}
        if t < total - tfinal:
            for s, own in theta.items():
                for n, w in own.items():
                    for at, x in np.ndenumerate(w):
                        I = abs(x * grads[s][n][at])
                        mean[s, n, at] = 0.85 * mean.get((s, n, at), 0.0) + 0.15 * I
                        unc[s, n, at] = 0.85 * unc.get((s, n, at), 0.0) + 0.15 * abs(I - mean[s, n, at])
        if t == total - tfinal or (tinit < t < total - tfinal and t % every == 0):
            score = {}
            for s, (out, in_) in SHAPES.items():
                S = lambda n, *at, s=s: mean[s, n, at] * unc[s, n, at]
                for i in range(r):
                    score[s, i] = (
                        S("lam", i)
                        + sum(S("P", o, i) for o in range(out)) / out
                        + sum(S("Q", i, j) for j in range(in_)) / in_
                    )
            budget = int((2 * r - 2 * target) * (1 - (t - tinit) / (total - tfinal - tinit)) ** 3 + 2 * target)
            kept = sorted(score, key=score.get, reverse=True)[:budget]
        masked = t >= total - tfinal or (tinit < t and t % every == 0)
        for s, i in score if masked else ():
            if (s, i) not in kept:
                expected[s][i] = 0
        step = Step(t, total, theta, grads, {}, state)
        method.after_backward(step)
        method.after_step(step)
        for s in SHAPES:
            assert np.array_equal(step.theta[s]["lam"], expected[s]), (t, s)
    assert sum(ranks(step.theta).values()) == 2 * target


def test_training_ends_with_the_budget():
    model = tiny.model()
    batch = tiny.example(model)
    start = attach(model, AdaLoRA(r=6, target_r=2, tinit=2, tfinal=4, deltaT=3))
    trained = fit(start, [batch], steps=14, optimiser=AdamW(lr=0.02)).adapted
    found = ranks(trained.adapters[0].grouped())
    assert sum(found.values()) == 2 * len(found) and len(set(found.values())) > 1
    for site, own in trained.adapters[0].grouped().items():
        change = weight_of(trained.adapters[0].at[site], 0 * model.params[site], own)
        assert np.linalg.matrix_rank(change) == found[site]


@pytest.mark.parametrize("orth", ["norm", "squared"])
def test_penalty(orth):
    arrays = {"a": dict(P=2 * np.eye(5, 3), lam=np.zeros(3), Q=np.eye(3, 4)), "": {}, "head": dict(W1=np.ones(2))}
    want = 0.5 * (27**0.5 if orth == "norm" else 27) / 2  # PᵀP − I is 3 I, QQᵀ − I is 0
    assert np.isclose(AdaLoRA(r=3, target_r=2, orth=orth).penalty(arrays), want)


def test_dropped_triplets_keep_the_scale():
    rng = np.random.default_rng(0)
    P, Q, lam = rng.standard_normal((5, 4)), rng.standard_normal((4, 3)), np.array([1.0, 0.0, 2.0, 0.0])
    whole, some = AdaLoRA(r=4, target_r=2), AdaLoRA(r=4, target_r=2, kept=2)
    W, left = rng.standard_normal((5, 3)), [0, 2]
    assert np.allclose(
        whole.change(P=P, lam=lam, Q=Q).onto(W), some.change(P=P[:, left], lam=lam[left], Q=Q[left]).onto(W), rtol=1e-14
    )
    adapter = attach(tiny.model(), AdaLoRA(kept=0, target_r=1), targets="attn.q.weight").adapters[0]
    assert adapter.size == 0


def test_refuses():
    with pytest.raises(Bad, match=r"adalora: target_r must be at most r = 12, found 13"):
        AdaLoRA(target_r=13)
    model = tiny.model()
    with pytest.raises(Bad, match=r"tinit \+ tfinal must be less than the 5 steps, found 5"):
        fit(attach(model, AdaLoRA(tinit=3, tfinal=2)), [tiny.example(model)], steps=5)


@pytest.mark.hf
def test_peft_keeps_the_same_triplets():
    import torch
    from peft import AdaLoraConfig, get_peft_model

    r, target, total = 4, 2, 12
    net = torch.nn.ModuleDict({s: torch.nn.Linear(i, o, bias=False) for s, (o, i) in SHAPES.items()})
    times = dict(tinit=2, tfinal=3, deltaT=2)
    config = AdaLoraConfig(init_r=r, target_r=target, total_step=total, target_modules=list(SHAPES), **times)
    model = get_peft_model(net, config).base_model
    method, state = AdaLoRA(r=r, target_r=target, **times), {}
    for t, theta, grads in random_steps(r, total, seed=3):
        for s in SHAPES:
            layer = model.model[s]
            for n, p in dict(P=layer.lora_B, lam=layer.lora_E, Q=layer.lora_A).items():
                p["default"].data = torch.tensor(theta[s][n]).reshape(p["default"].shape)
                p["default"].grad = torch.tensor(grads[s][n]).reshape(p["default"].shape)
        model.update_and_allocate(t)
        step = Step(t, total, theta, grads, {}, state)
        method.after_backward(step)
        method.after_step(step)
        for s in SHAPES:
            assert np.array_equal(step.theta[s]["lam"], model.model[s].lora_E["default"].detach().numpy()[:, 0])
