"""Queries that may see no key: what is computed there is one function, forwards and backwards, and that of transformers."""

import dataclasses

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.engine import ops
from minipeft.engine.backend import lowest, read_only
from minipeft.engine.gradcheck import gradcheck
from minipeft.engine.tensor import value_and_grad
from minipeft.method import method_class
from minipeft.model.batch import batch

IDS = np.array([[5, 9, 3, 17, 2], [7, 8, 4, 6, 11], [30, 2, 9, 9, 4]])
LEFT = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
HOLES = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
DECODER = np.array([[0, 7, 8], [0, 3, 4], [0, 9, 2]])
CASES = {
    "llama": ("llama", {}, dict(input_ids=IDS, attention_mask=LEFT, labels=IDS)),
    "llama with a window": ("llama", dict(window=2), dict(input_ids=IDS, attention_mask=HOLES, labels=IDS)),
    "gpt2": ("gpt2", {}, dict(input_ids=IDS, attention_mask=LEFT, labels=IDS)),
    "bert": ("bert", {}, dict(input_ids=IDS, attention_mask=LEFT, labels=np.array([0, 3, 1]))),
    "t5, an empty memory": ("t5", {}, dict(input_ids=IDS, attention_mask=LEFT, labels=DECODER)),
    "t5, an empty decoder": (
        "t5",
        {},
        dict(input_ids=IDS, labels=DECODER, decoder_attention_mask=np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1]])),
    ),
}
TRAINED = {"lora": dict(targets="all-linear", r=2), "full": {}, "prefix_tuning": dict(p=2)}


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_finite_differences(name, method):
    family, facts, arrays = CASES[name]
    model = tiny.model(family)
    model = dataclasses.replace(model, arch=dataclasses.replace(model.arch, **facts))
    adapted = attach(model, method_class(method)(**TRAINED[method]))
    rng = np.random.default_rng(0)
    theta = {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()}
    gradcheck(lambda t: adapted.loss(t, batch(**arrays)), theta, group=lambda key: key.rpartition(":")[2])


@pytest.mark.parametrize("t", [3, 70, 600])
@pytest.mark.parametrize("grouped", [1, 2])
def test_attention_that_sees_nothing_weighs_alike_and_passes_nothing_on(t, grouped):
    """The three ways of the host: one block, blocks with what is kept, blocks computed again. Closed form: the mean of v."""
    rng = np.random.default_rng(t)
    q, k, v = (rng.standard_normal((2, h, t, 3)) for h in (4, 4 // grouped, 4 // grouped))
    hidden = np.triu(np.ones((t, t), bool), 1)[None, None] | (np.arange(t) < t // 3)[None, None, None]
    bias = read_only(np.where(hidden, lowest(np.float64) / 2, 0.0))
    weight = rng.standard_normal((2, 4, t, 3))

    def f(a):
        y = ops.attention(a["q"], a["k"], a["v"], bias + a["learned"], scale=0.5)
        return ops.sum(y * weight)

    theta = dict(q=q, k=k, v=v, learned=rng.standard_normal((1, 4, t, t)) if t < 100 else np.zeros((1, 1, 1, 1)))
    _, grads = value_and_grad(f)(theta)
    blind = t // 3
    assert not grads["q"][:, :, :blind].any() and np.abs(grads["q"][:, :, blind:]).max() > 0
    if t < 100:
        assert not grads["learned"][:, :, :blind].any()
        gradcheck(f, theta)
    y = ops.attention(q, k, v, bias, scale=0.5)
    alike = np.repeat(v.mean(axis=2, keepdims=True), grouped, axis=1)
    np.testing.assert_allclose(y[:, :, :blind], np.broadcast_to(alike, y[:, :, :blind].shape), rtol=0, atol=1e-14)
