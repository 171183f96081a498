"""Methods over trained adapters: their arrays are taken over as they are, or drawn afresh."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints.native import load_adapter, save_adapter
from minipeft.conformance import tiny
from minipeft.declare import Method, OverAdapters, count, lowrank, normal, of_parts, parts, trained
from minipeft.drawing import Facts, there
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.settings import part_of
from minipeft.targets import sites

load_methods()
Q, V = "layers.0.attn.q.weight", "layers.1.attn.v.weight"


@dataclass(frozen=True)
class Part(Method, register=False):
    """A low rank."""

    name = "part"
    targets: str = Q
    r: int = count(2)
    A = trained("r", "in", start=normal())
    B = trained("out", "r", start=normal())

    def change(self, *, A, B):
        return lowrank(B, A)


@dataclass(frozen=True)
class Mixed(OverAdapters, register=False):
    """The sum of them, weighted."""

    name = "mixed"
    targets: str = Q
    some: tuple[Part, ...] = parts(Part, (Part(), Part(r=3)))
    also: bool = False
    w = trained("2", start=normal())
    own = of_parts("some", trained="also")

    def change(self, *, w, **own):
        return sum(
            (lowrank(own[f"B{k}"] * w[k], own[f"A{k}"]) for k in (0, 1) if f"A{k}" in own),
            lowrank(own["B0"] * 0, own["A0"]),
        )


class Alike(Mixed, register=False):
    """All of them at every site."""

    name = "alike"
    own = of_parts("some", same_sites=True)


def two(one=Q, other=Q, **fields):
    """Two adapters on one model, each where it is told."""
    model = attach(
        attach(tiny.model(), Part(), name="a", targets=one), Part(r=3, **fields), name="b", targets=other, seed=1
    )
    return model.adapters


def test_arrays_are_taken_over_bit_for_bit():
    given = two()
    method = Mixed.from_adapters(given)
    assert method.some == (Part(), Part(r=3)) and method.targets == Q and type(method) is Mixed
    own = attach(tiny.model(), method).adapters[0]
    for k, adapter in enumerate(given):
        for name in "AB":
            assert np.array_equal(own.arrays[f"{Q}:{name}{k}"], adapter.arrays[f"{Q}:{name}"])
    assert own.trained == {f"{Q}:w"}


def test_the_model_computes_with_them():
    model, given = tiny.model(), two()
    adapted = attach(model, Mixed.from_adapters(given))
    own, W = adapted.adapters[0].grouped()[Q], model.params[Q]
    changes = [a.arrays[f"{Q}:B"] @ a.arrays[f"{Q}:A"] for a in given]
    assert np.allclose(adapted.run().param(Q), W + sum(w * C for w, C in zip(own["w"], changes)))


def test_settings_and_what_is_trained_may_be_told():
    method = Mixed.from_adapters(two(), also=True)
    assert attach(tiny.model(), method).adapters[0].trained == {f"{Q}:{n}" for n in ("w", "A0", "B0", "A1", "B1")}
    assert Mixed.from_adapters(two(), targets=V).targets == V


def test_others_are_drawn_afresh():
    fresh = attach(tiny.model(), Mixed(), seed=4).adapters[0]
    rng = np.random.default_rng(4)
    assert np.array_equal(fresh.arrays[f"{Q}:w"], rng.standard_normal(2))
    assert np.array_equal(fresh.arrays[f"{Q}:A0"], rng.standard_normal((2, 24))) and Mixed().given == {}
    assert fresh.arrays[f"{Q}:A1"].shape == (3, 24)


def test_what_is_given_belongs_to_the_instance():
    method = Mixed.from_adapters(two())
    assert Mixed.given == {} == Mixed().given and set(method.given) == {Q}
    assert method == dataclasses.replace(Mixed(), some=method.some)  # equal settings are equal methods
    site = sites(tiny.model())[Q]
    assert [it.name for it in there(Facts(method, site))] == ["w", "A0", "B0", "A1", "B1"]


def test_adapters_at_different_sites():
    """A site has the arrays of the adapters that are there."""
    method = Mixed.from_adapters(two(f"{Q} {V}", Q))
    assert method.targets == f"{Q} {V}"
    own = attach(tiny.model(), method).adapters[0].grouped()
    assert own[Q].keys() == {"w", "A0", "B0", "A1", "B1"} and own[V].keys() == {"w", "A0", "B0"}


def test_saved_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "mixed", Mixed)
    monkeypatch.setitem(METHODS, "part", Part)
    adapted = attach(tiny.model(), Mixed.from_adapters(two(f"{Q} {V}", Q)))
    save_adapter(adapted, tmp_path / "a")
    again = load_adapter(Adapted(tiny.model()), tmp_path / "a")
    assert again.adapters[0].arrays.keys() == adapted.adapters[0].arrays.keys()
    assert all(np.array_equal(again.run().param(site), adapted.run().param(site)) for site in (Q, V))


def test_what_it_cannot_be_built_over():
    lora = attach(tiny.model(), "lora", targets=Q).adapters[0]
    with pytest.raises(Bad, match=r"mixed: some must be one or more .*Part"):
        Mixed.from_adapters([lora])
    with pytest.raises(Bad, match="some must be one or more"):
        Mixed.from_adapters([])
    differing = attach(tiny.model(), Part(), targets=f"{Q} {V}", patterns={V: {"r": 4}}).adapters
    with pytest.raises(Bad, match="adapter 'default' is not the same method at all sites, or trains whole modules"):
        Mixed.from_adapters(differing)
    whole = attach(tiny.model(), Part(), targets=Q, train_whole=["head"]).adapters
    with pytest.raises(Bad, match="or trains whole modules"):
        Mixed.from_adapters(whole)


def test_where_all_must_be_at_the_same_sites():
    assert Alike.from_adapters(two()).some == (Part(), Part(r=3))
    with pytest.raises(Bad, match="alike: adapter 'b' must be Part, at the same sites as 'a'"):
        Alike.from_adapters(two(f"{Q} {V}", Q))
    lora = attach(tiny.model(), "lora", name="l", targets=Q).adapters
    with pytest.raises(Bad, match="adapter 'l' must be Part, at the same sites as 'a'"):
        Alike.from_adapters([two()[0], *lora])


def test_what_a_method_is_built_over():
    assert part_of(Mixed) == ("some", Part) and part_of(Part) is None
    over = {name for name, cls in METHODS.items() if part_of(cls)}
    assert all(issubclass(METHODS[name], OverAdapters) for name in over) and over
    for name in over:
        setting, part = part_of(METHODS[name])
        assert all(type(p) is part for p in getattr(METHODS[name](), setting)), name
