"""What makes training fast, against its text."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.engine import fast as engine_fast
from minipeft.methods.lowrank.lora import LoRA
from minipeft.train import AdamW
from minipeft.train import fast as training
from minipeft.train.loop import gradients

K = 8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(st.integers(0, 2**32 - 1), st.integers(1, 2000), st.floats(0, 0.5), st.floats(1e-12, 1e-2))
def test_adamw_is_its_text(dtype, seed, t, decay, eps):
    """One step from any state: within K·u of the terms' sizes, as many roundings as either has."""
    rng, shapes = np.random.default_rng(seed), {"a": (3, 4), "b": (), "c": (0, 2), "d": (70,)}
    theta, grads = ({k: np.asarray(rng.standard_normal(s)).astype(dtype) for k, s in shapes.items()} for _ in range(2))
    m = {f"m/{k}": x * dtype(0.1) for k, x in grads.items()}
    v = {f"v/{k}": np.asarray(rng.uniform(1e-6, 1, s)).astype(dtype) for k, s in shapes.items()}
    lr, o = dict.fromkeys(theta, 0.1) | {"d": 0.3}, AdamW(weight_decay=decay, eps=eps)
    new, after = o.step(theta, grads, m | v, t, lr)
    wide = lambda arrays: {k: x.astype(np.float64) for k, x in arrays.items()}
    with engine_fast.text():
        want, then = o.step(wide(theta), wide(grads), wide(m | v), t, lr)
    u = np.finfo(dtype).eps / 2
    for k, x in want.items():
        move = lr[k] * abs(then[f"m/{k}"]) / (1 - o.beta1**t)
        size = abs(theta[k]) + move / (np.sqrt(then[f"v/{k}"] / (1 - o.beta2**t)) + eps)
        assert new[k].dtype == dtype and (abs(new[k] - x) <= K * u * size).all()
    for k, x in then.items():
        size = abs((m | v)[k]) + abs(grads[k[2:]]) ** (1 if k[0] == "m" else 2)
        assert after[k].dtype == dtype and (abs(after[k] - x) <= K * u * size).all()


def test_adamw_on_runs_of_arrays_is_adamw_on_each(monkeypatch):
    """Whatever lies in one vector, of whatever sizes, rates and types, and though a method replaces arrays between steps."""
    rng, shapes = np.random.default_rng(0), {"e": (0, 2), "a": (3, 4), "c": (7,), "b": (), "d": (2, 5)}
    start = {k: np.asarray(rng.standard_normal(shape)) for k, shape in shapes.items()}
    start["f"] = start["a"].astype(np.float32)
    lr = dict.fromkeys(start, 0.1) | {"c": 0.3}

    def trained(size):
        monkeypatch.setattr(training, "RUN", size)
        o, theta = AdamW(weight_decay=0.1), dict(start)
        state, seen = o.init(theta), []
        for t in range(1, 5):
            theta, state = o.step(theta, {k: np.cos(t * x) for k, x in theta.items()}, state, t, lr)
            seen.append(
                training.joined(theta, training.runs(theta, lr)[0]) is theta.runs.get(("e", "a", "b"), [None])[0]
            )
            assert list(theta) == list(start)  # sums over all arrays go in one order, resumed or not
            if size == 0:  # nothing but arrays
                theta, state = dict(theta), dict(state)
            if t == 2:
                theta["b"], theta["a"] = theta["b"] + 1, theta["a"] * 2
        return dict(theta) | dict(state), seen

    each, _ = trained(0)
    some, seen = trained(22)
    assert seen == [True] * 4 and each.keys() == some.keys()
    for k in each:
        assert each[k].dtype == some[k].dtype
        np.testing.assert_array_equal(some[k], each[k])


def test_gradients_on_all_cores_are_gradients():
    model = tiny.model()
    adapted, batch = attach(model, LoRA(r=2, dropout=0.5)), tiny.example(model)
    loss, grads = gradients(adapted, batch, adapted.theta, np.random.default_rng(3))
    with engine_fast.text():
        want, want_grads = gradients(adapted, batch, adapted.theta, np.random.default_rng(3))
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    for k, g in want_grads.items():
        np.testing.assert_allclose(grads[k], g, rtol=1e-9, atol=1e-12)
