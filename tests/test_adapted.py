"""Frozen means frozen."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import in_turn

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Unfit
from minipeft.method import METHODS, load_methods
from minipeft.methods.structured.vera import VeRA
from minipeft.settings import small
from minipeft.train import SGD, Adafactor, AdamW, fit

BASES = Path(__file__).parent / "data" / "bases"
load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))
FAMILIES = sorted(tiny.ARCHS)


@given(st.sampled_from(FAMILIES), st.data())
def test_base_arrays_cannot_be_written_to(family, data):
    model = tiny.model(family)
    name = data.draw(st.sampled_from(sorted(model.params)))
    with pytest.raises(ValueError, match="read-only"):
        model.params[name][...] = 0
    with pytest.raises(ValueError, match="read-only"):
        attach(model, "full").model.params[name][0] += 1


def test_stored_arrays_cannot_be_written_to():
    stored = attach(tiny.model(), VeRA()).adapters[0].stored
    assert stored
    for a in stored.values():
        with pytest.raises(ValueError, match="read-only"):
            a[...] = 0


@settings(max_examples=5)
@given(
    st.sampled_from(FAMILIES),
    st.sampled_from(
        [SGD(lr=0.01, momentum=0.9, weight_decay=0.1), AdamW(lr=0.01, weight_decay=0.1), Adafactor(weight_decay=0.1)]
    ),
    st.integers(0, 99),
)
@pytest.mark.parametrize("name", in_turn(SHIPPED, every=12))
def test_frozen_stays_frozen(name, family, optimiser, seed):
    """Arrays copied before, compared after: the base, what methods store, and what gradients and moments there are."""
    cls = METHODS[name]
    model = tiny.model(family, seed=seed)
    method = small(cls, model.arch)
    batch = tiny.example(model, seed=seed, tasks=getattr(method, "n_tasks", 1))
    try:
        adapted = attach(model, method, data=[batch], seed=seed)
    except Unfit:
        return
    before = {k: np.array(v) for k, v in adapted.model.params.items() if not hasattr(v, "dequantize")}
    whole, stored = adapted.model.digest(), {k: np.array(v) for k, v in adapted.adapters[0].stored.items()}
    trained = {
        f"default/{k}": a.shape for k, a in adapted.adapters[0].arrays.items() if k in adapted.adapters[0].trained
    }
    _, grads = adapted.value_and_grad(batch)
    assert {k: g.shape for k, g in grads.items()} == trained
    moments = optimiser.init(adapted.theta)
    assert {k.split("/", 1)[1] for k in moments} == set(trained)
    assert sum(m.size for k, m in moments.items()) <= 2 * sum(int(np.prod(s)) for s in trained.values())
    after = fit(adapted, [batch], steps=2, optimiser=optimiser).adapted
    assert after.model.digest() == adapted.model.digest() == whole
    for k, v in before.items():
        assert np.array_equal(after.model.params[k], v)
    for k, v in stored.items():
        assert np.array_equal(after.adapters[0].arrays[k], v)
    assert any(not np.array_equal(after.theta[k], adapted.theta[k]) for k in trained)
