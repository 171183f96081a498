"""Nobody moves a frozen number by accident: every handle on a base's and an adapter's stored arrays, in every storage."""

import copy
import pickle

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.conformance import tiny
from minipeft.data import BASE
from minipeft.engine.bfloat16 import Bfloat16
from minipeft.engine.weight import Weight, widened
from minipeft.method import METHODS
from minipeft.model.base import Model
from minipeft.quantize import FourBits
from minipeft.settings import small


def models():
    """One in each storage."""
    made = {name: tiny.model("llama", dtype) for name, dtype in [("float64", np.float64), ("bfloat16", "bfloat16")]}
    made["read"] = load(BASE)
    made["nf4"] = attach(tiny.model("llama", np.float32), "qlora").model
    made["nf4-double"] = load(BASE, "nf4-double")
    return made


def handles(a):
    """The array, and all that it is a view of."""
    while a is not None:
        yield a
        a = getattr(a, "base", None)


@pytest.mark.parametrize("storage", ["float64", "bfloat16", "read", "nf4", "nf4-double"])
def test_a_base_is_not_written_to(storage):
    model = models()[storage]
    before = model.digest()
    kinds = {type(W) for W in model.params.values()}
    assert storage in ("float64", "read") or kinds & {Bfloat16, FourBits}
    for W in model.params.values():
        for a in [x for x in vars(W).values() if isinstance(x, np.ndarray)] if isinstance(W, Weight) else [W]:
            for handle in handles(a):
                with pytest.raises((ValueError, TypeError)):
                    handle[...] = 0
                if isinstance(handle, np.ndarray):
                    with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
                        handle.flags.writeable = True
        widened(W).sum()
    assert model.digest() == before


def test_the_parameters_of_a_model_are_not_exchanged():
    model = tiny.model()
    name = next(iter(model.params))
    zero = np.zeros(model.params[name].shape)
    tries = [
        lambda p: p.__setitem__(name, zero), lambda p: p.__delitem__(name), lambda p: p.update({name: zero}), lambda p: p.pop(name),
        lambda p: p.popitem(), lambda p: p.clear(), lambda p: p.setdefault("more", zero), lambda p: p.__ior__({name: zero}),
    ]  # fmt: skip
    for tried in tries:
        with pytest.raises(TypeError, match=r"not exchanged; dataclasses\.replace makes another model"):
            tried(model.params)
    assert (model.params | {name: zero})[name] is zero and model.params[name] is not zero
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.digest() == model.digest() and type(other.params) is type(model.params)


def test_stored_arrays_are_not_written_to():
    for method in ("vera", "fourierft", "pissa"):
        for name, a in attach(tiny.model(), small(METHODS[method], tiny.arch("llama"))).adapters[0].stored.items():
            for handle in handles(a):
                with pytest.raises((ValueError, TypeError)):
                    handle[...] = 0
                assert not isinstance(handle, np.ndarray) or not handle.flags.writeable, name


def test_what_is_given_stays_writeable_and_is_not_copied():
    """Whoever keeps the array that a model was made of can write to it: the guide says so."""
    plain = tiny.model()
    given = {k: np.array(v) for k, v in plain.params.items()}
    model = Model(plain.arch, given, plain.names)
    assert all(np.shares_memory(model.params[k], a) and a.flags.writeable for k, a in given.items())
    again = Model(plain.arch, model.params, plain.names)
    assert all(again.params[k] is W for k, W in model.params.items())
