import numpy as np

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.merging import merge
from minipeft.methods.selective.full import Full
from minipeft.train import SGD, fit


def test_one_step_of_gradient_descent_is_that_of_the_weights():
    """Central differences of the loss by a weight of the base itself."""
    import dataclasses

    from minipeft.adapted import Adapted

    model = tiny.model()
    given = tiny.example(model)
    after = fit(attach(model, Full()), [given], steps=1, optimiser=SGD(lr=0.5)).adapted
    key, step = "layers.1.mlp.up.weight", 1e-6

    def loss(change):
        W = model.params[key].copy()
        W[3, 2] += change
        return Adapted(dataclasses.replace(model, params={**model.params, key: W})).loss(None, given)

    slope = (loss(step) - loss(-step)) / (2 * step)
    moved = merge(after).params[key][3, 2] - model.params[key][3, 2]
    np.testing.assert_allclose(moved, -0.5 * slope, rtol=1e-6)


def test_every_parameter_is_trained_and_none_twice():
    for family in ("llama", "gpt2", "bert", "t5", "vit"):
        model = tiny.model(family)
        adapter = attach(model, Full()).adapters[0]
        assert adapter.size == model.size
