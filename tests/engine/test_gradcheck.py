"""The checker is checked: it accepts right gradients, rejects planted errors, and refuses what it cannot judge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.engine import OPS, gradcheck, ops
from minipeft.engine.tensor import op


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def planted(forward, *vjps):
    """An op outside the registry, with the VJPs `(g, *args) -> gradient` given."""

    def planted_op(*args):
        return forward(*args), tuple(lambda g, vjp=vjp: vjp(g, *args) for vjp in vjps)

    made = op(planted_op)
    del OPS["planted_op"]
    return made


def product(vjp_x, vjp_y):
    f = planted(lambda x, y: x @ y, vjp_x, vjp_y)
    return lambda t: ops.sum(ops.sin(f(t["x"], t["y"])))


def right_x(g, x, y):
    return g @ y.T


def right_y(g, x, y):
    return x.T @ g


THETA = {"x": array(3, 3), "y": array(3, 3, seed=1)}


@given(seed=st.integers(0, 1000))
def test_right_gradients_are_accepted(seed):
    checks = gradcheck(product(right_x, right_y), THETA, seed=seed)
    assert [c.key for c in checks] == ["x", "y"]
    assert all(c.ok for c in checks)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda g, x, y: -(x.T @ g),
        lambda g, x, y: 1.01 * (x.T @ g),
        lambda g, x, y: (x.T @ g).T,
        lambda g, x, y: x @ g,
        lambda g, x, y: 0 * (x.T @ g),
        lambda g, x, y: x.T @ g + 1e-3,
    ],
    ids=["sign", "factor", "transposed", "untransposed-input", "lost", "offset"],
)
@given(seed=st.integers(0, 1000))
def test_planted_errors_are_rejected_by_name(wrong, seed):
    with pytest.raises(AssertionError, match="gradient along a random direction of y"):
        gradcheck(product(right_x, wrong), THETA, seed=seed)


def test_a_missing_sum_over_a_broadcast_axis_is_rejected():
    """The gradient of row b taken from the first row only, instead of summed over all."""
    f = planted(lambda x, b: x + b, lambda g, x, b: g, lambda g, x, b: g[:1])
    with pytest.raises(AssertionError, match="direction of b"):
        gradcheck(lambda t: ops.sum(ops.sin(f(t["x"], t["b"]))), {"x": array(3, 4), "b": array(4, seed=1)})


def test_float32_is_refused():
    with pytest.raises(TypeError, match="needs float64; y is float32"):
        gradcheck(product(right_x, right_y), {"x": THETA["x"], "y": THETA["y"].astype(np.float32)})


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_kink_is_too_rough_to_judge(factor):
    """At a kink no tolerance would be honest, whether the gradient is called right or wrong."""
    f = planted(np.abs, lambda g, x: factor * g * np.sign(x))
    with pytest.raises(AssertionError, match="x: too rough to judge"):
        gradcheck(lambda t: ops.sum(f(t["x"])), {"x": np.array([1.5e-4])})


def test_entries_without_elements_are_passed_over():
    checks = gradcheck(lambda t: ops.sum(t["x"]) + ops.sum(t["none"]), {"none": np.zeros((0, 3)), "x": np.array(2.0)})
    assert [c.key for c in checks] == ["x"]


def test_a_function_that_does_not_depend_on_an_entry_passes():
    assert all(c.gradient == 0 for c in gradcheck(lambda t: np.float64(3.0), {"x": array(2)}))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_the_verdict_does_not_depend_on_the_scale_of_the_loss(size):
    gradcheck(lambda t: ops.mul(size, product(right_x, right_y)(t)), THETA)
    with pytest.raises(AssertionError):
        gradcheck(lambda t: ops.mul(size, product(right_x, lambda g, x, y: 1.01 * (x.T @ g))(t)), THETA)
