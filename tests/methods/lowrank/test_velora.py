import dataclasses

import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.engine import gradients_flow
from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.lowrank.velora import VeLoRA

RNG = np.random.default_rng(0)


def given(method, out=5, in_=7):
    W, b, x, c = (RNG.standard_normal(s) for s in ((out, in_), (out,), (2, 3, in_), (2, 3, out)))
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(1), moved=0.5), W, b, x, c


def grads_of(method, a, W, b, x, c, **options):
    """The output and the gradients of what is trained, and of x."""
    theta = {k: v for k, v in a.items() if k in "ABc"}
    rest = {k: v for k, v in a.items() if k not in "ABc"}
    y, grads = one_part.forward_and_grads(method, theta, rest, x, c, W, b, **options)

    def f(t):
        out = one_part.output(method, a, t["x"], W, b, **options)
        return one_part.ops.sum(out * c)

    return y, grads | one_part.value_and_grad(f)(dict(x=x))[1]


def tokens(x, v, G, factor):
    """x̂, sub-token by sub-token."""
    d, out = len(v), []
    for row in x.reshape(-1, x.shape[-1]):
        padded = [*row, *[0.0] * (G * d - len(row))]
        parts = [padded[i : i + d] for i in range(0, G * d, d)]
        out.append([factor * np.dot(part, v) * w for part in parts for w in v][: len(row)])
    return np.array(out)


@pytest.mark.parametrize("G", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("init", ["batch", "random"])
def test_only_the_gradient_of_a_is_another_and_in_training_alone(G, init):
    method, lora = (
        VeLoRA(r=3, alpha=6.0, groups=G, init=init, factor=0.7, lora_bias=True),
        LoRA(r=3, alpha=6.0, lora_bias=True),
    )
    a, W, b, x, c = given(method)
    assert a["v"].shape == (-(-7 // G),)
    own = {k: v for k, v in a.items() if k != "v"}
    y, grads = grads_of(lora, own, W, b, x, c)
    ours, exact = grads_of(method, a, W, b, x, c)
    assert (ours == y).all() and all((exact[k] == g).all() for k, g in grads.items())
    ours, kept = grads_of(method, a, W, b, x, c, train=True)
    np.testing.assert_allclose(ours, y, rtol=1e-12, atol=1e-13)
    for k in ("B", "c", "x"):
        np.testing.assert_allclose(kept[k], grads[k], rtol=1e-12, atol=1e-13)
    v = a["v"]
    if init == "batch":
        padded = np.concatenate([x.reshape(6, 7), np.zeros((6, G * len(v) - 7))], axis=1)
        v = padded.reshape(-1, len(v)).mean(axis=0)
        v = v / np.linalg.norm(v)
    expected = 2 * (c.reshape(6, 5) @ a["B"]).T @ tokens(x, v, G, 0.7)
    np.testing.assert_allclose(kept["A"], expected, rtol=0, atol=1e-13 * abs(expected).max())


def test_sub_tokens_along_v_lose_nothing():
    method = VeLoRA(r=2, groups=3, init="random")
    a, W, b, _, c = given(method, in_=6)
    x = (RNG.standard_normal((2, 3, 3, 1)) * a["v"]).reshape(2, 3, 6)
    exact, kept = (grads_of(method, a, W, b, x, c, train=train)[1]["A"] for train in (False, True))
    np.testing.assert_allclose(kept, exact, rtol=0, atol=1e-14 * abs(exact).max() * 8)


def test_with_gradients_that_flow_training_has_those_of_lora():
    method = VeLoRA(r=2, groups=3)
    a, W, b, x, c = given(method)
    exact = grads_of(method, a, W, b, x, c)[1]["A"]
    with gradients_flow():
        np.testing.assert_allclose(grads_of(method, a, W, b, x, c, train=True)[1]["A"], exact, atol=1e-13)


def test_inputs_of_zeros_have_a_direction():
    method = VeLoRA(r=2, groups=2)
    a, W, b, x, c = given(method)
    y, grads = grads_of(method, a, W, b, 0 * x, c, train=True)
    assert np.isfinite(y).all() and not grads["A"].any()


def test_starts():
    model = tiny.model()
    for init, asks in (("batch", False), ("random", False), ("once", True)):
        made = attach(model, VeLoRA(r=2, groups=5, init=init), data=[tiny.example(model)] if asks else ())
        for v in (a for k, a in made.adapters[0].arrays.items() if k.endswith(":v")):
            assert v.shape == (5,) and abs(np.linalg.norm(v) - (init != "batch")) < 1e-6
    with pytest.raises(Bad, match="measures inputs before it starts"):
        attach(model, VeLoRA(init="once"))


def test_the_first_batch_is_that_of_the_data():
    method = VeLoRA(r=2, groups=2, init="once")
    X = RNG.standard_normal((9, 7))
    where = one_part.site(np.zeros((5, 7)))
    v = one_part.arrays(method, dataclasses.replace(where, inputs=[X, 3 * X[:2]]), RNG)["v"]
    m = np.concatenate([X, np.zeros((9, 1))], axis=1).reshape(18, 4).mean(axis=0)
    np.testing.assert_allclose(v, m / np.linalg.norm(m), rtol=1e-13)


def test_it_merges_as_lora():
    method = VeLoRA(r=2, alpha=4.0)
    a, W, *_ = given(method)
    np.testing.assert_allclose(weight_of(method, W, a), W + 2 * a["B"] @ a["A"], rtol=1e-13)


@pytest.mark.hf
@pytest.mark.parametrize("G", [2, 3, 64])
@pytest.mark.parametrize("init", ["batch", "random"])
@pytest.mark.parametrize(("out", "in_"), [(5, 12), (9, 7)])
def test_output_and_gradients_in_training_are_those_of_peft(G, init, out, in_, monkeypatch):
    import peft
    import torch

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # it normalises in float32
    W, b, x, c = (RNG.standard_normal(s) for s in ((out, in_), (out,), (2, 3, in_), (2, 3, out)))
    own = peft.VeloraConfig(num_groups=G, scale=0.7, init_type=dict(batch="batch_average").get(init, init))
    config = peft.LoraConfig(r=4, lora_alpha=5, lora_bias=True, velora_config=own, target_modules=["lin"])
    theirs = one_part.Peft(config, W, b, x, c)
    keys = dict(A="lora_A.weight", B="lora_B.weight", c="lora_B.bias")
    a = {k: theirs.params[v] for k, v in keys.items()}
    layer = theirs.model.base_model.model.lin
    a["v"] = layer.lora_velora_embed["default"].numpy()
    assert a["v"].shape == (-(-in_ // G),)
    theirs.model.train().zero_grad()
    given = torch.tensor(x, requires_grad=True)
    y = theirs.model(given)
    (y * torch.tensor(c)).sum().backward()
    grads = {theirs._short(k): p.grad.numpy() for k, p in theirs.model.named_parameters() if p.grad is not None}
    method = VeLoRA(r=4, alpha=5.0, lora_bias=True, groups=G, factor=0.7, init=init)
    ours, slopes = grads_of(method, a, W, b, x, c, train=True)
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=0, atol=1e-13 * abs(ours).max())
    for k, expected in {**{k: grads[v] for k, v in keys.items()}, "x": given.grad.numpy()}.items():
        np.testing.assert_allclose(slopes[k], expected, rtol=0, atol=1e-12 * abs(expected).max())
