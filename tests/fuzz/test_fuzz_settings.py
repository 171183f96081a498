"""Every field of every method at and beyond the ends of its range, through attaching, a forward pass, gradients and merging."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from outcomes import tally

from minipeft.adapted import Adapted
from minipeft.arrays import declared, needs
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.method import METHODS, is_weight, load_methods
from minipeft.settings import kind, small
from minipeft.targets import sites

load_methods()
ODD = {
    "int": [0, 1, -1, 2, 3, 5, 7, 13, 25, 64, 10**7, 10**30, -(10**9)],
    "float": [0.0, 1.0, -1.0, 0.5, 0.999, 1e-12, 1e-300, 1e30, 1e300, -1e9, 5, np.float64(0.5), np.float32(0.25)],
    "bool": [True, False],
    "str": [
        "",
        " ",
        "nonsense",
        "*",
        "re:(",
        "re:.*",
        "all-linear",
        "[",
        "*.bias",
        "head.weight",
        "layers.0.*",
        "x\ny",
    ],
}
ANY = [
    None,
    "",
    "text",
    True,
    0,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    (),
    [],
    [1],
    {},
    object(),
    np.array([1, 2]),
    1j,
    b"r",
]
FAMILIES = ("llama", "bert", "t5", "gpt2", "vit")


@cache
def model(family, dtype):
    return tiny.model(family, dtype)


def through(family, dtype, make):
    """What a method computes on a tiny model: loss, logits, gradients; logits after merging where it merges."""
    base = model(family, dtype)
    batch = tiny.example(base)
    method = make()
    adapted = attach(base, method, data=[batch] if needs(method) else ())
    loss, grads = adapted.value_and_grad(batch, train=True, rng=np.random.default_rng(0))
    found = {"loss": loss, "logits": adapted.logits(batch)} | grads
    assert found["loss"].dtype == found["logits"].dtype == dtype, "the dtype is lost"
    if all(is_weight(m) for m in adapted.adapters[0].at.values()):
        merged = Adapted(merge(adapted)).logits(batch)
        found["merged"] = merged
        assert np.allclose(merged, found["logits"], rtol=1e-3, atol=1e-3 * abs(merged).max()), "merging changes it"
    if method.identity and declared(type(method)).held is None:
        plain = Adapted(base).logits(batch)
        assert np.allclose(found["logits"], plain, rtol=1e-3, atol=1e-3 * abs(plain).max()), "it is no identity"
    return found


@cache
def places(family):
    return sorted(sites(model(family, np.float64)))


def drawn(seed, n):
    """n odd settings: a method, a family, a dtype, one or two fields changed."""
    rng = np.random.default_rng(seed)
    names = sorted(n for n, c in METHODS.items() if c.__module__.startswith("minipeft."))
    for _ in range(n):
        name = names[rng.integers(len(names))]
        family, dtype = FAMILIES[rng.integers(5)], (np.float64, np.float32)[rng.integers(2)]
        cls = METHODS[name]
        fields = dataclasses.fields(cls)
        changed = {}
        for _ in range(1 + rng.integers(2)):
            f = fields[rng.integers(len(fields))]
            kinds = [k for k in ODD if k in kind(f)]
            values = ANY if not kinds or rng.random() < 0.15 else ODD[kinds[rng.integers(len(kinds))]]
            if f.name == "targets" and rng.random() < 0.7:
                values = places(family)
            changed[f.name] = values[rng.integers(len(values))]

        def make(cls=cls, family=family, changed=changed):
            return dataclasses.replace(small(cls, tiny.arch(family)), **changed)

        yield (name, family, dtype.__name__, changed), lambda f=family, d=dtype, m=make: through(f, d, m)


def test_every_setting_is_computed_or_refused_in_one_line():
    counts = tally(drawn(0, 120))
    assert min(counts.values()) > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_settings(seed):
    tally(drawn(seed, 1500))


def test_what_is_declared_is_checked_for_every_method():
    """A NaN, a text, None and a bool in every number; a wrong word in every choice."""
    for cls in METHODS.values():
        for f in dataclasses.fields(cls):
            wrong = {
                "int": (None, "1", 1.0, True),
                "float": (None, "1", np.nan, np.inf, True),
                "bool": (None, 0, "no"),
                "str": (None, 1),
            }
            for x in wrong.get(kind(f), ()):
                with pytest.raises(Bad, match=rf"^{cls.name}: {f.name} must be .*, found "):
                    cls(**{f.name: x})
