"""What the letters of declarations stand for at a site, which arrays are there, and in which order they are drawn."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.declare import (
    Method,
    choice,
    count,
    each,
    fact,
    fill,
    normal,
    of_parts,
    parts,
    size,
    stored,
    trained,
    zero_if,
)
from minipeft.drawing import Facts, draw, draw_all, symbols, there
from minipeft.engine.bfloat16 import bfloat16
from minipeft.errors import Bad
from minipeft.method import METHODS, Site, load_methods, refuse_unfit
from minipeft.methods.lowrank.lora import LoRA
from minipeft.settings import small
from minipeft.targets import sites

load_methods()
ARCH = tiny.arch("llama")
SITE = Site("layers.0.attn.q.weight", (7, 9), "linear", ARCH, np.ones((7, 9)))


class Plain(Method, register=False):
    """Changes nothing."""

    def change(self, **arrays):
        return 0.0


# --- letters ----------------------------------------------------------------------------------------------------------


def test_letters_of_a_linear():
    known = symbols(LoRA(r=3, alpha=2.0), sites(tiny.model())["layers.0.attn.v.weight"])
    assert (known["in"], known["out"], known["r"], known["alpha"]) == (24, 12, 3, 2.0)
    assert (known["width"], known["size"], known["site"]) == (24, 288, "layers.0.attn.v.weight")
    assert (known["linear"], known["embedding"], known["activation"]) == (True, False, False)


def test_letters_of_the_model():
    known = symbols(LoRA(), sites(tiny.model())["layers.1.mlp.up.weight"])
    assert {k: known[k] for k in ("L", "H", "G", "e", "ff", "d", "V", "d_model")} == dict(
        L=2, H=6, G=3, e=4, ff=40, d=24, V=50, d_model=24
    )


def test_letters_of_a_table():
    words = symbols(LoRA(), sites(tiny.model())["embed.tokens.weight"])
    assert (words["V"], words["d"], words["H"], words["G"], words["e"], words["L"]) == (50, 24, 6, 3, 4, 2)
    assert words["embedding"] and (words["out"], words["in"]) == (50, 24)
    places = symbols(LoRA(), sites(tiny.model("gpt2"))["embed.positions.weight"])
    assert (places["V"], places["d"]) == (40, 24)  # rows and columns of the table itself


def test_letters_of_activations_biases_and_norms():
    every = sites(tiny.model("vit"))
    bias = symbols(LoRA(), every["layers.0.mlp.up.bias"])
    assert bias["out"] == bias["size"] == bias["width"] == 40 and "in" not in bias and bias["d"] == 24 and bias["bias"]
    hidden = symbols(LoRA(), every["layers.0.mlp.hidden"])
    assert (
        hidden["d"] == hidden["width"] == 40
        and hidden["d_model"] == 24
        and "out" not in hidden
        and hidden["activation"]
    )
    norm = symbols(LoRA(), every["layers.0.attn.norm.weight"])
    assert norm["out"] == 24 and "in" not in norm and norm["norm"] and not norm["bias"]


def test_letters_of_several_sites():
    every = sites(tiny.model())
    where = [every[f"layers.0.attn.{n}.weight"] for n in "qv"] + [every["layers.0.mlp.down.weight"]]
    known = symbols(LoRA(), where[1], where)
    assert (known["sites"], known["out_max"], known["in_max"], known["out"]) == (3, 24, 40, 12)
    assert known["total"] == sum(s.shape[0] * s.shape[1] for s in where)
    alone = symbols(LoRA(), where[1])
    assert (alone["sites"], alone["total"], alone["out_max"], alone["in_max"]) == (1, 12 * 24, 12, 24)


def test_letters_of_the_methods_own():
    @dataclass(frozen=True)
    class Made(Plain, register=False):
        r: int = count(2)
        share: float = 2.5
        beta = fact(lambda method, site: site.shape[0] - method.r)
        K = size("beta r")
        half = size("in / share")
        first = fact(lambda method, site: site.layer == 0)
        out = size("out + 100")  # a letter of its own comes before the site's

    known = symbols(Made(r=3), SITE)
    assert (known["beta"], known["K"], known["half"], known["first"], known["out"]) == (4, 12, 3, True, 107)
    assert type(known["half"]) is int


def test_an_unknown_letter_is_told():
    class Made(Plain, register=False):
        A = trained("rnak", "in")

    with pytest.raises(Bad, match="expression 'rnak': 'rnak' stands for nothing"):
        list(there(Facts(Made(), SITE)))


@given(st.sampled_from(sorted(METHODS)), st.sampled_from(list(tiny.ARCHS)))
def test_every_setting_is_a_letter(name, family):
    method = METHODS[name]()
    for site in list(sites(tiny.model(family)).values())[::7]:
        try:
            refuse_unfit(method, site)
        except Bad:
            continue
        known = symbols(method, site)
        assert all(known[k] == v for k, v in vars(method).items())


# --- facts ------------------------------------------------------------------------------------------------------------


def test_facts_show_the_base_on_the_host():
    model = tiny.model()
    site = sites(model)["layers.0.attn.q.weight"]
    facts = Facts(LoRA(r=3), site, index=4)
    assert np.array_equal(facts.W, site.W) and np.array_equal(
        facts.param("embed.tokens.weight"), model.params["embed.tokens.weight"]
    )
    assert facts["r"] == 3 and facts.value("r (in + out)") == 144 and facts.index == 4 and facts.sites == (site,)
    more = facts.with_letter(n=2)
    assert more.value("n r") == 6 and "n" not in facts.known and more.drawn is facts.drawn
    half = Site(site.name, site.shape, site.kind, ARCH, bfloat16(np.float32(site.W)))
    assert Facts(LoRA(), half).W.dtype == np.float32


# --- order ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ordered(Plain, register=False):
    """Draws five times."""

    name = "ordered"
    start: str = choice("normal", "zero")
    optional: bool = False
    Z = trained("out", start=normal())
    A = stored("in", start=zero_if("start == 'zero'", normal(2.0)))
    o = trained("3", start=normal(), when="optional")
    n = trained("out", start=fill(1))
    V = each("2", V=trained("n + 1", start=normal()), w=trained("2", start=normal(3.0)))
    B = trained("2", start=normal())


def test_the_order_is_that_of_declaration():
    rng = np.random.default_rng(5)
    got = draw(Facts(Ordered(), SITE, np.random.default_rng(5)))
    assert list(got) == ["Z", "A", "n", "V0", "w0", "V1", "w1", "B"]
    want = [rng.standard_normal(7), 2.0 * rng.standard_normal(9), np.ones(7)]
    for n in range(2):
        want += [rng.standard_normal(n + 1), 3.0 * rng.standard_normal(2)]
    want.append(rng.standard_normal(2))
    assert all(np.array_equal(a, w) for (a, _), w in zip(got.values(), want, strict=True))
    assert [k for k, (_, is_trained) in got.items() if not is_trained] == ["A"]


def test_what_is_zeroed_is_drawn_nevertheless():
    usual, zero = (draw(Facts(Ordered(start=s), SITE, np.random.default_rng(5))) for s in ("normal", "zero"))
    assert usual["A"][0].all() and not zero["A"][0].any()
    assert all(np.array_equal(usual[k][0], zero[k][0]) for k in usual if k != "A")


def test_what_is_not_there_is_not_drawn():
    with_, without = (draw(Facts(Ordered(optional=o), SITE, np.random.default_rng(5))) for o in (True, False))
    assert with_.keys() - without.keys() == {"o"} and np.array_equal(with_["A"][0], without["A"][0])
    assert not np.array_equal(with_["B"][0], without["B"][0])


def test_sites_are_drawn_one_after_the_other_and_what_they_share_first():
    @dataclass(frozen=True)
    class Made(Plain, register=False):
        targets: str = "attn.q.weight"
        B = trained("2", start=normal())
        C = trained("2", start=normal(), shared=True)

    rng = np.random.default_rng(3)
    own = attach(tiny.model(), Made(), seed=3).adapters[0].arrays
    for key in (":C", "layers.0.attn.q.weight:B", "layers.1.attn.q.weight:B"):
        assert np.array_equal(own[key], rng.standard_normal(2))


def test_numbers_of_sites():
    seen = {}

    class Made(Plain, register=False):
        at = fact(lambda method, site: seen.setdefault(site.name, len(seen)))
        x = trained("1")

    where = [Site(f"layers.{i}.attn.q.weight", (2, 2), "linear", ARCH) for i in range(3)]
    draw_all(Made(), where, np.random.default_rng(0))
    assert seen == {s.name: i for i, s in enumerate(where)}


# --- there ------------------------------------------------------------------------------------------------------------


def test_what_is_there_without_drawing_it():
    facts = Facts(Ordered(optional=True), SITE)  # no generator
    found = {it.name: (it.shape, it.trained, it.own) for it in there(facts)}
    assert found == dict(
        Z=((7,), True, "Z"), A=((9,), False, "A"), o=((3,), True, "o"), n=((7,), True, "n"), V0=((1,), True, "V"),
        w0=((2,), True, "w"), V1=((2,), True, "V"), w1=((2,), True, "w"), B=((2,), True, "B"),
    )  # fmt: skip
    assert list(there(facts, shared=True)) == []


def test_parts_have_the_letters_of_what_is_over_them():
    @dataclass(frozen=True)
    class Inner(Plain, register=False):
        r: int = count(2)
        A = trained("r", "in", start=normal())

    @dataclass(frozen=True)
    class Outer(Plain, register=False):
        r: int = count(5)
        experts: tuple[Inner, ...] = parts(Inner, (Inner(r=1), Inner(r=3)))
        own = of_parts("experts", A=fill(4))
        B = trained("r", "out")

    assert {it.name: it.shape for it in there(Facts(Outer(), SITE))} == dict(A0=(1, 9), A1=(3, 9), B=(5, 7))
    assert (draw(Facts(Outer(), SITE))["A1"][0] == 4).all()


@pytest.mark.parametrize("family", list(tiny.ARCHS))
def test_what_is_there_is_what_is_drawn(family):
    model = tiny.model(family)
    every = sites(model)
    for name in ("lora", "dora", "oft", "vera", "houlsby", "poly", "full"):
        adapter = attach(model, small(METHODS[name], model.arch)).adapters[0]
        at = [every[s] for s in adapter.at]
        for index, (site, method) in enumerate(adapter.at.items()):
            declared = {it.name: it.shape for it in there(Facts(method, every[site], sites=at, index=index))}
            assert declared == {k: a.shape for k, a in adapter.grouped().get(site, {}).items()}
