"""Batches at and beyond the edge are computed, and rightly, or refused in one line."""

from functools import cache

import numpy as np
import pytest
from batches import base, drawn
from outcomes import outcome, tally

from minipeft.attaching import attach
from minipeft.engine.gradcheck import gradcheck
from minipeft.engine.tensor import value
from minipeft.model.batch import batch


@cache
def adapted(name):
    """A base with LoRA at every linear, moved from its start."""
    made = attach(base(name), "lora", targets="all-linear")
    rng = np.random.default_rng(0)
    return made.replace({k: v + 0.1 * rng.standard_normal(v.shape) for k, v in made.theta.items()})


def through(name, given):
    """Loss, gradients and logits, or the hidden state where there is no head; a slope by differences beside the gradient's."""
    model, arrays = adapted(name), batch(**given)
    out = model.forward(arrays)
    found = {"output": value(out.hidden if out.logits is None else out.logits)}
    if out.loss is None:
        return found
    loss, grads = model.value_and_grad(arrays)
    try:
        gradcheck(lambda theta: model.loss(theta, arrays), model.theta, group=lambda key: "all")
    except AssertionError as why:
        if "too rough to judge" not in str(why):  # a kink of T5's ReLU lies within the step
            raise
    return found | {"loss": loss} | grads


def cases(seed, n):
    for name, given, told in drawn(seed, n):
        yield (
            (name, told, {k: getattr(v, "dtype", v) for k, v in given.items()}),
            lambda name=name, given=given: through(name, given),
        )


@pytest.mark.parametrize("n", [40, pytest.param(100, marks=pytest.mark.wide)])
def test_every_batch_is_computed_or_refused_in_one_line(n):
    counts = tally(cases(0, n))
    assert min(counts.values()) > n / 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_batches(seed):
    tally(cases(seed, 2000))


@pytest.mark.parametrize("n", [20, pytest.param(60, marks=pytest.mark.wide)])
def test_a_valid_batch_is_never_refused(n):
    """Those that nothing was changed of: none but a sequence longer than the table of positions."""
    for name, given, _ in drawn(9, n, changes=(0, 1)):
        kind, what = outcome(lambda name=name, given=given: through(name, given))
        assert kind == "computed" or "position table" in what, (name, what)
