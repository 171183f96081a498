"""Layers computed twice: the same bits for every method, and far less on the tape."""

import dataclasses
import gc

import numpy as np
import pytest
from ranks import bits
from sampled import in_turn

from minipeft.arrays import settings_of
from minipeft.attaching import attach
from minipeft.conformance import laws, tiny
from minipeft.engine import ops
from minipeft.engine.backend import peak_memory
from minipeft.engine.recompute import recomputed
from minipeft.engine.tensor import Tensor, backward, value_and_grad
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.settings import small
from minipeft.tape.kept import gone, held
from minipeft.tape.record import reachable
from minipeft.train import fit

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))


def dropping(name, family):
    """A small instance that drops what it can."""
    method = small(METHODS[name], tiny.ARCHS[family])
    return dataclasses.replace(method, **{k: 0.3 for k, x in settings_of(method).items() if "dropout" in k and x == 0})


def usual(name):
    """A family that the method fits."""
    return "bert" if name == "bitfit" else "llama"


ELSEWHERE = [(n, f) for f in tiny.ARCHS for n in SHIPPED if f != usual(n)]


@pytest.mark.parametrize(("name", "family"), [(n, usual(n)) for n in SHIPPED] + in_turn(ELSEWHERE, every=40))
def test_the_same_bits_and_the_same_numbers_drawn(name, family):
    case = laws.case(dropping(name, family), family)
    if case is None and family != usual(name):
        pytest.skip("does not fit")
    found = []
    for recompute in (False, True):
        rng = np.random.default_rng(3)
        loss, grads = case.moved.value_and_grad(case.batch, train=True, rng=rng, recompute=recompute)
        found.append((loss, {k: g.tobytes() for k, g in grads.items()}, rng.bit_generator.state))
    assert found[0] == found[1]


def test_a_training_is_the_same():
    adapted = attach(tiny.model("t5", np.float32), LoRA(r=2, dropout=0.3))
    data = [tiny.example(adapted.model, rows=4)]
    for workers in (1, 2):
        plain, again = (fit(adapted, data, steps=3, workers=workers, recompute=r) for r in (False, True))
        assert bits(plain) == bits(again)
    with pytest.raises(Bad, match="graph beside recompute: expected one of the two"):
        fit(adapted, data, steps=1, graph=True, recompute=True)


def kept(adapted, batch, recompute):
    """Bytes that the tape keeps between a forward pass and its backward pass."""
    leaves = {k: Tensor(v) for k, v in adapted.theta.items()}
    loss = adapted.loss(leaves, batch, train=True, recompute=recompute)
    memory = [m for found in held(reachable([loss.node])).values() for m in found]
    backward(loss, np.ones((), loss.dtype))
    del loss, leaves
    gc.collect()
    return gone(memory)


def test_what_the_tape_keeps_of_a_layer_is_what_goes_into_it():
    b, t, d = 4, 16, 24
    numbers = {}
    for layers in (2, 6):
        model = tiny.model("llama", layers=layers)
        adapted = attach(model, LoRA(r=2))
        batch = tiny.example(model, rows=b, t=t)
        numbers[layers] = [kept(adapted, batch, recompute) / 8 for recompute in (False, True)]
    full, less = ((numbers[6][i] - numbers[2][i]) / 4 for i in (0, 1))  # each further layer's
    assert less == b * t * d and full > 15 * less


def test_memory_at_once_is_of_one_layer():
    model = tiny.model("llama", layers=8)
    adapted, batch = attach(model, LoRA(r=2)), tiny.example(model, rows=8, t=32)
    found = []
    for recompute in (False, True):
        adapted.value_and_grad(batch, recompute=recompute)
        with peak_memory() as peak:
            adapted.value_and_grad(batch, recompute=recompute)
        found.append(peak[0])
    assert found[1] < 0.4 * found[0]


# --- the mechanism ----------------------------------------------------------------------------------------------------


def test_a_function_is_called_once_more_and_what_it_changes_is_as_after_the_first_time():
    state = dict(calls=[], n=0)

    def loss(theta):
        def f():
            state["n"] += 1
            state["calls"].append(state["n"])
            return ops.exp(theta["x"] * theta["x"]) * state["n"]

        y = recomputed(f, lambda: state["n"], lambda n: state.update(n=n))
        state["n"] += 10
        return ops.sum(y)

    x = np.linspace(-1, 1, 5)
    value, grads = value_and_grad(loss)(dict(x=x))
    assert state == dict(calls=[1, 1], n=11)
    assert np.allclose(grads["x"], 2 * x * np.exp(x * x), rtol=1e-14)


def test_what_nobody_asks_for_is_not_computed_again():
    calls = []

    def f(x):
        calls.append(1)
        return ops.exp(x)

    nothing = lambda *_: None
    for used in (0, 1):
        calls.clear()

        def loss(theta, used=used):
            parts = [theta["x"], recomputed(lambda: f(theta["x"]), nothing, nothing)]
            return ops.sum(parts[used])

        value_and_grad(loss)(dict(x=np.ones(2)))
        assert len(calls) == 1 + used
    assert recomputed(lambda: f(np.ones(2)), nothing, nothing).tolist() == np.exp(np.ones(2)).tolist()


def test_a_function_that_is_another_the_second_time_is_told():
    ways = iter([ops.exp, ops.tanh])
    nothing = lambda *_: None
    with pytest.raises(RuntimeError, match="computed again, a layer was made of other ops"):
        value_and_grad(lambda theta: ops.sum(recomputed(lambda: next(ways)(theta["x"]), nothing, nothing)))(
            dict(x=np.ones(2))
        )


def test_a_generator_that_went_on_would_be_seen(monkeypatch):
    """What the first test compares depends on what is put back."""
    from minipeft.run import Run

    adapted = laws.moved(attach(tiny.model(), LoRA(r=2, dropout=0.3)))
    batch = tiny.example(adapted.model)
    whole = adapted.value_and_grad(batch, train=True, rng=np.random.default_rng(3))[1]
    monkeypatch.setattr(Run, "_return_to", lambda self, moment: None)
    try:
        other = adapted.value_and_grad(batch, train=True, rng=np.random.default_rng(3), recompute=True)[1]
    except RuntimeError:
        return
    assert any((other[k] != whole[k]).any() for k in whole)
