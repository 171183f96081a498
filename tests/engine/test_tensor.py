"""The tape: what is on it, what it holds, how gradients meet, and when memory goes."""

from __future__ import annotations

import gc
import operator
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.engine import OPS, Tensor, gradients_flow, ops, stop_gradient, value, value_and_grad
from minipeft.engine.recompute import recomputed
from minipeft.engine.tensor import Node, Onto, Put, Replacement, taking, unbroadcast


def array(*shape, seed=0, dtype=np.float64):
    x = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    x.flags.writeable = False
    return x


def grad(f, *args):
    """The gradients of f(*args), summed, in the order of the arguments."""
    _, grads = value_and_grad(lambda t: ops.sum(f(*t.values())))({str(i): a for i, a in enumerate(args)})
    return list(grads.values())


# --- frozen means absent --------------------------------------------------------------------------------------------


def test_ops_on_plain_arrays_tape_nothing(monkeypatch):
    monkeypatch.setattr("minipeft.engine.tensor.Node", None)  # making a node would raise
    y = ops.linear(array(2, 3), array(4, 3), array(4))
    assert type(y) is np.ndarray


def kept_alive(f, *shape):
    """Whether the result of f still holds its argument, which nobody else does."""
    x = watched(*shape)  # made here: pytest keeps what an assertion's expression made
    alive = weakref.ref(x)
    y = f(x)
    del x
    gc.collect()
    assert type(y) is Tensor
    return alive() is not None


class Watched(np.ndarray):
    """An array that a weak reference can watch through its views."""


def watched(*shape):
    return array(*shape).copy().view(Watched)


def test_linear_with_a_frozen_weight_does_not_keep_its_input():
    W = array(4, 3)
    assert not kept_alive(lambda x: ops.linear(Tensor(x), W), 2, 3)


def test_linear_with_a_trained_weight_keeps_its_input():
    W = array(4, 3)
    assert kept_alive(lambda x: ops.linear(x, Tensor(W)), 2, 3)


def test_product_with_a_frozen_factor_does_not_keep_the_other():
    c = array(2, 3)
    assert not kept_alive(lambda x: ops.mul(Tensor(x), c), 2, 3)
    assert kept_alive(lambda x: ops.mul(x, Tensor(c)), 2, 3)


def test_a_node_holds_no_value():
    assert "value" not in Node.__slots__
    assert not kept_alive(lambda x: ops.add(Tensor(x), 1.0), 2, 3)


# --- accumulation ---------------------------------------------------------------------------------------------------


def test_diamond():
    x = array(3)

    def f(x):
        a, b = ops.mul(x, 2.0), ops.sin(x)
        return ops.mul(a, b) + a

    np.testing.assert_allclose(grad(f, x)[0], 2 * np.sin(x) + 2 * x * np.cos(x) + 2, rtol=1e-15, atol=1e-15)


@given(shape=st.sampled_from([(), (1,), (2, 3)]), uses=st.integers(1, 5))
def test_each_use_counts_once(shape, uses):
    def f(x):
        total = x
        for _ in range(uses - 1):
            total = total + x
        return total

    np.testing.assert_array_equal(grad(f, array(*shape))[0], np.full(shape, uses))


def test_aliased_gradients_are_not_written_into():
    """add hands one g to both arguments; what a meets later must not reach b."""

    def f(a, b):
        total = a + b  # taped first, so its g arrives at a and b last ...
        return total * 1.0 + a * 10.0 + a * 100.0 + b * 1000.0

    def g(a, b):
        other = a * 10.0 + a * 100.0 + b * 1000.0
        return (a + b) + other  # ... and here first

    for h in (f, g):
        ga, gb = grad(h, array(2), array(2))
        np.testing.assert_array_equal(ga, [111, 111])
        np.testing.assert_array_equal(gb, [1001, 1001])


def test_aliased_gradients_survive_an_indexed_one():
    def f(a, b):
        first = a[0] * 7.0
        return ops.sum(a + b) + first

    ga, gb = grad(f, array(2), array(2))
    np.testing.assert_array_equal(ga, [8, 1])
    np.testing.assert_array_equal(gb, [1, 1])


def test_a_gradient_does_not_alias_the_arguments():
    c = array(3)
    (g,) = grad(lambda x: ops.mul(x, c), array(3))
    assert not np.shares_memory(g, c)


@pytest.mark.parametrize(
    ("index", "want"),
    [
        (slice(1, None), [0, 1, 1, 1]),
        (slice(None, None, -2), [0, 1, 0, 1]),
        (2, [0, 0, 1, 0]),
        (-1, [0, 0, 0, 1]),
        (np.array([1, 1, 3, 1]), [0, 3, 0, 1]),
        ([0, 0], [2, 0, 0, 0]),
        (np.array([True, False, True, False]), [1, 0, 1, 0]),
        ((None, Ellipsis, slice(0, 2)), [1, 1, 0, 0]),
        (np.int64(1), [0, 1, 0, 0]),
    ],
    ids=str,
)
def test_indexed_gradients(index, want):
    np.testing.assert_array_equal(grad(lambda x: x[index], array(4))[0], want)
    with_dense = grad(lambda x: ops.sum(x[index]) + ops.sum(x * 5.0) + ops.sum(x[index]), array(4))[0]
    np.testing.assert_array_equal(with_dense, 5 + 2 * np.array(want))


def test_indexed_gradients_are_not_spread_out():
    """Each VJP returns the part it knows; one full array is made, however many slices there are."""
    y = ops.getitem(Tensor(array(4)), index=slice(1, 3))
    (part,) = (vjp(array(2)) for vjp in y.node.vjps)
    assert type(part) is Put
    assert part.g.shape == (2,)


def added_in_place(asked):
    """Stands for `exp`: its gradient is added by itself, in place where it may be."""

    def exp(x):
        y = np.exp(x)

        def onto(g):
            def add(have, ours):
                asked.append((have is not None, ours))
                if have is None:
                    return g * y
                return np.add(have, g * y, out=have if ours else None)

            return Onto(add)

        return y, (onto,)

    return {"exp": Replacement(exp)}


@pytest.mark.parametrize("uses", [1, 2, 3])
def test_a_gradient_that_is_added_together_with_the_sum(uses):
    """It writes to no array that is another's gradient too: here that of z, which x + z gave to both."""

    def f(x, z):
        return x + z + sum((ops.exp(x) for _ in range(uses)), 0.0)

    asked = []
    want = grad(f, array(4), array(4, seed=1))
    with taking(added_in_place(asked)):
        got = grad(f, array(4), array(4, seed=1))
    assert (True, False) in asked or (False, False) in asked
    assert asked[1:] == [(True, True)] * (uses - 1)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=1e-14)


def made_again(kept):
    """Stand for `exp`, whose value can be made again, and for `sin`, which needs its argument later and need not keep it."""

    def exp(x):
        y = np.exp(x)
        kept.append(weakref.ref(y))

        def vjp(g, wanted):
            return (g * np.exp(x),)

        vjp.again = lambda: np.exp(x)
        return y, vjp

    def sin(x, again=()):
        make = again[0] or (lambda: x)
        return np.sin(x), (lambda g: g * np.cos(make()),)

    return {"exp": Replacement(exp), "sin": Replacement(sin, asks=("again",))}


@pytest.mark.parametrize("recompute", [False, True])
def test_what_can_be_made_again_need_not_be_kept(recompute):
    kept, alive = [], []

    def f(x):
        layer = lambda: ops.sin(ops.exp(x)) + 0.0
        y = recomputed(layer, lambda: None, lambda moment: None) if recompute else layer()
        alive.append([ref() is not None for ref in kept])
        return y

    want = grad(lambda x: ops.sin(ops.exp(x)), array(4))
    with taking(made_again(kept)):
        got = grad(f, array(4))
    assert alive == [[False]]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("have", "want"), [((2, 3), (3,)), ((2, 3), (1, 3)), ((2, 3), ()), ((4, 2, 3), (2, 1)), ((0, 3), (1, 3))]
)
def test_unbroadcast_undoes_broadcasting(have, want):
    g = array(*have)
    got = unbroadcast(g, want)
    assert got.shape == want
    x = array(*want, seed=1)
    np.testing.assert_allclose((got * x).sum(), (g * np.broadcast_to(x, have)).sum(), rtol=0, atol=1e-14)  # its adjoint


# --- value_and_grad -------------------------------------------------------------------------------------------------


def test_value_and_gradients():
    x = array(3)
    loss, grads = value_and_grad(lambda t: ops.sum(t["x"] * t["x"]))({"x": x})
    assert loss == (x * x).sum()
    assert type(loss) is not Tensor
    np.testing.assert_array_equal(grads["x"], 2 * x)


def test_other_arguments_are_passed_on():
    loss, grads = value_and_grad(lambda t, a, *, b: ops.sum(t["x"] * a) * b)({"x": array(2)}, 3.0, b=2.0)
    np.testing.assert_array_equal(grads["x"], [6, 6])


def test_aux_comes_back_as_it_is():
    aux = {"logits": object()}
    (loss, got), grads = value_and_grad(lambda t: (ops.sum(t["x"]), aux))({"x": array(2)})
    assert got is aux
    assert loss.shape == ()
    np.testing.assert_array_equal(grads["x"], [1, 1])


def test_unused_entries_get_zeros():
    theta = {"used": array(2), "not": array(3, 1, dtype=np.float32)}
    _, grads = value_and_grad(lambda t: ops.sum(t["used"]))(theta)
    assert list(grads) == ["used", "not"]
    assert grads["not"].dtype == np.float32
    np.testing.assert_array_equal(grads["not"], np.zeros((3, 1)))


def test_a_constant_function_has_zero_gradients():
    loss, grads = value_and_grad(lambda t: np.float64(3))({"x": array(2)})
    assert loss == 3
    np.testing.assert_array_equal(grads["x"], [0, 0])


def test_the_identity_has_gradient_one():
    assert value_and_grad(lambda t: t["x"])({"x": np.array(2.0)}) == (2.0, {"x": 1.0})


@pytest.mark.parametrize(
    ("f", "found"),
    [
        (lambda t: t["x"], r"shape \(2,\)"),
        (lambda t: ops.sum(t["x"], keepdims=True), r"shape \(1,\)"),
        (lambda t: None, "a NoneType"),
    ],
)
def test_what_is_not_a_scalar_is_refused(f, found):
    with pytest.raises(TypeError, match=f"needs a scalar array, the function returned {found}"):
        value_and_grad(f)({"x": array(2)})


def test_stop_gradient_and_gradients_flow():
    def f(x):
        return stop_gradient(x) * x

    x = array(3)
    np.testing.assert_array_equal(grad(f, x)[0], x)
    with gradients_flow():
        with gradients_flow():
            pass
        np.testing.assert_array_equal(grad(f, x)[0], 2 * x)  # the inner context gives back what it found
    np.testing.assert_array_equal(grad(f, x)[0], x)
    with pytest.raises(KeyError), gradients_flow():
        raise KeyError
    np.testing.assert_array_equal(grad(f, x)[0], x)
    assert stop_gradient(x) is x


def test_value_of_tensor_and_array():
    x = array(2)
    assert value(Tensor(x)) is x
    assert value(x) is x


# --- size -----------------------------------------------------------------------------------------------------------


def test_deep_chains_do_not_recurse():
    def f(x):
        for _ in range(5000):
            x = x + 1.0
        return x

    np.testing.assert_array_equal(grad(f, array(2))[0], [1, 1])


def test_the_tape_is_freed_during_backward():
    """Through n multiplications the tape holds n activations; the backward pass lets each go once it is used."""
    n, size = 20, 1 << 16
    held = []

    @ops.op
    def probe(x):
        def vjp(g):
            held.append(tracemalloc.get_traced_memory()[0])
            return g

        return x * 1.0, (vjp,)

    del OPS["probe"]

    def f(x):
        x = probe(x)  # reached last in the backward pass
        for _ in range(n):
            x = x * x
        return probe(x)  # reached first

    x = np.ones(size)
    tracemalloc.start()
    try:
        grad(f, x)
    finally:
        tracemalloc.stop()
    first, last = held
    assert first - last > (n - 4) * x.nbytes


def test_the_tape_is_gone_after_backward():
    alive = []

    def f(x):
        y = ops.exp(x)
        alive.append(weakref.ref(y.value))
        return y * y

    grad(f, array(3))
    assert alive[0]() is None


# --- operators ------------------------------------------------------------------------------------------------------

ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv]
NUMBERS = [2, 2.5, True, np.float64(2.5), np.float32(2.5), np.int64(2), np.array([1.0, 2.0, 4.0], np.float32)]


@pytest.mark.parametrize("other", NUMBERS, ids=lambda x: f"{type(x).__name__}")
@pytest.mark.parametrize("f", ARITHMETIC, ids=lambda f: f.__name__)
def test_operators_keep_float32(f, other):
    x = array(2, 3, dtype=np.float32)
    for got, want in [(f(Tensor(x), other), f(x, np.float32(other))), (f(other, Tensor(x)), f(np.float32(other), x))]:
        assert type(got) is Tensor
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got.value, want)


@pytest.mark.parametrize("f", [*ARITHMETIC, operator.matmul], ids=lambda f: f.__name__)
def test_operators_between_tensors_and_arrays(f):
    x, y = array(3, 3), array(3, 3, seed=1)
    for a, b in [(Tensor(x), Tensor(y)), (Tensor(x), y), (x, Tensor(y))]:
        got = f(a, b)
        assert type(got) is Tensor
        np.testing.assert_array_equal(got.value, f(x, y))


def test_methods_are_the_ops():
    x = array(2, 3, 4)
    t = Tensor(x)
    for got, want in [
        (-t, -x),
        (abs(t), abs(x)),
        (t**2, x**2),
        (t[:, 1], x[:, 1]),
        (t.T, x.T),
        (t.sum(), x.sum()),
        (t.sum(axis=1, keepdims=True), x.sum(axis=1, keepdims=True)),
        (t.mean(-1), x.mean(-1)),
        (t.reshape(6, 4), x.reshape(6, 4)),
        (t.reshape((4, 6)), x.reshape(4, 6)),
        (t.swapaxes(0, 2), x.swapaxes(0, 2)),
        (t.transpose(), x.transpose()),
        (t.transpose(1, 0, 2), x.transpose(1, 0, 2)),
        (t.transpose((1, 0, 2)), x.transpose(1, 0, 2)),
    ]:
        assert type(got) is Tensor
        np.testing.assert_array_equal(got.value, want)
    assert (t.shape, t.ndim, t.size, t.dtype, len(t)) == (x.shape, x.ndim, x.size, x.dtype, len(x))
    assert repr(Tensor(np.ones(2))) == "Tensor(array([1., 1.]))"


def test_a_tensor_has_no_truth_value():
    with pytest.raises(TypeError, match="no truth value"):
        bool(Tensor(np.ones(1)))
