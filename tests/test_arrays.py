"""Declarations of arrays: how each starts, when it is there, what a method requires."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from minipeft.adapted import Adapted
from minipeft.arrays import array_of, declared, intervenes, needs, rate
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.declare import (
    Bad,
    Method,
    Unfit,
    at_least,
    by,
    choice,
    count,
    distinct,
    divides,
    each,
    either,
    extremes,
    fact,
    fill,
    found,
    found_together,
    free,
    held,
    in_layers,
    inverse,
    normal,
    of_parts,
    orthonormal,
    parts,
    requires,
    same,
    setting,
    size,
    stored,
    trained,
    uniform,
    when,
    zero_if,
)  # fmt: skip
from minipeft.drawing import Facts, draw, draw_all
from minipeft.method import METHODS, Site, load_methods
from minipeft.quantize import FourBits, quantize
from minipeft.targets import sites

load_methods()
ARCH = tiny.arch("llama")
LINEAR = Site("layers.0.attn.q.weight", (7, 9), "linear", ARCH, np.arange(63.0).reshape(7, 9) / 7)
TABLE = Site("embed.tokens.weight", (50, 24), "embedding", ARCH)
WIDE = Site("layers.1.mlp.up.weight", (200, 300), "linear", ARCH)


class Plain(Method, register=False):
    """Changes nothing."""

    def change(self, **arrays):
        return 0.0


def of(start, site=WIDE, seed=0, shape=("out", "in"), **fields):
    """An array that starts so, at a site."""

    class Made(Plain, register=False):
        x = trained(*shape, start=start)

    method = dataclass(frozen=True)(Made)(**fields)
    return drawn(method, site, seed)["x"]


def drawn(method, site=LINEAR, seed=0, shared=False):
    """{name: array} as a method begins there."""
    return {k: a for k, (a, _) in draw(Facts(method, site, np.random.default_rng(seed)), shared).items()}


# --- starts -----------------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6))
def test_fill(number):
    start = fill(number)
    assert (of(start, LINEAR) == number).all() and start.says == f"{number:g}"
    assert start.is_zero == (start.says == "0")


def test_an_array_starts_at_0_unless_told_otherwise():
    class Made(Plain, register=False):
        x = trained("out")
        y = stored("in")

    assert not drawn(Made())["x"].any() and not drawn(Made())["y"].any()
    assert declared(Made).arrays["x"].start.is_zero


@pytest.mark.parametrize(
    ("start", "law", "says"),
    [
        (normal(), stats.norm(), "N(0, 1)"),
        (normal(0.02), stats.norm(scale=0.02), "N(0, 0.02²)"),
        (normal(over="in"), stats.norm(scale=1 / 300), "N(0, (1/in)²)"),
        (uniform("in"), stats.uniform(-(300**-0.5), 2 * 300**-0.5), "U(±1/√in)"),
        (uniform("in / 3"), stats.uniform(-0.1, 0.2), "U(±1/√(in / 3))"),
        (uniform(bound=0.5), stats.uniform(-0.5, 1.0), "U(±0.5)"),
    ],
)
def test_what_is_drawn_is_so_distributed(start, law, says):
    x = of(start)
    assert x.shape == (200, 300) and x.dtype == np.float64 and start.says == says
    assert stats.kstest(x.ravel(), law.cdf).pvalue > 0.01
    assert abs(x).max() <= abs(np.array(law.support())).max() and x.min() < 0 < x.max()
    assert np.array_equal(x, of(start)) and not np.array_equal(x, of(start, seed=1))


@given(st.integers(1, 6), st.integers(0, 99))
def test_orthonormal_rows(r, seed):
    Q = of(orthonormal(), LINEAR, seed, (str(r), "in"))
    assert np.allclose(Q @ Q.T, np.eye(r), atol=1e-13) and "orthonormal rows" in orthonormal().says


def test_orthonormal_rows_prefer_no_sign():
    """Uniform among such: the first number is as often below 0 as above."""
    signs = [of(orthonormal(), LINEAR, seed, ("3", "in"))[0, 0] > 0 for seed in range(200)]
    assert 70 < sum(signs) < 130


def test_setting_and_same():
    @dataclass(frozen=True)
    class Made(Plain, register=False):
        d_initial: float = free(0.3)
        x = trained("out", start=setting("d_initial"))
        A = trained("out", start=normal())
        A0 = stored("out", start=same("A"))

    own = drawn(Made(d_initial=2.5))
    assert (own["x"] == 2.5).all() and np.array_equal(own["A0"], own["A"]) and own["A"].any()
    starts = {name: a.start.says for name, a in declared(Made).arrays.items()}
    assert starts == dict(x="d_initial", A="N(0, 1)", A0="A")


def test_inverse_and_distinct_numbers():
    assert (of(inverse("2 in"), LINEAR) == 1 / 18).all()
    x = of(distinct("2 in"), WIDE, shape=("out", "3"))
    assert (
        x.shape == (200, 3) and x.dtype.kind == "i" and x.min() >= 0 and distinct("2 in").says == "distinct, below 2 in"
    )
    assert 550 < x.max() < 600 and all(len(set(row)) == 3 for row in x.tolist())
    assert len(set(map(tuple, x.tolist()))) > 190 and all(70 < n < 130 for n in (np.diff(x) > 0).sum(axis=0))
    assert np.array_equal(np.sort(of(distinct("5"), shape=("4", "5"))), np.tile(np.arange(5), (4, 1)))


def test_either_and_zero_if():
    @dataclass(frozen=True)
    class Made(Plain, register=False):
        start: str = choice("normal", "zero")
        x = trained("out", start=either("start == 'normal' and linear", normal(), fill(3)))
        y = trained("out", start=zero_if("start == 'zero'", normal()))
        z = trained("out", start=either("embedding", normal()))

    usual, zero, table = drawn(Made()), drawn(Made(start="zero")), drawn(Made(), TABLE)
    assert usual["x"].std() > 0.1 and (zero["x"] == 3).all() and (table["x"] == 3).all()
    assert usual["y"].any() and not zero["y"].any() and not usual["z"].any() and table["z"].any()
    says = {name: a.start.says for name, a in declared(Made).arrays.items()}
    assert says["x"] == 'N(0, 1) with start = "normal" and linear, else 3'
    assert says["y"] == 'N(0, 1); 0 with start = "zero"' and says["z"] == "N(0, 1) with embedding, else 0"


def test_a_start_by_a_setting():
    @dataclass(frozen=True)
    class Made(Plain, register=False):
        start: str = choice("three", "normal", "grads", "other")
        x = trained(
            "out", start=by("start", fill(3), normal=normal(), grads=found(lambda m, f: 0, "G", needs=("grads",)))
        )

    assert (drawn(Made())["x"] == 3).all() and (drawn(Made(start="other"))["x"] == 3).all()
    assert (drawn(Made(start="normal"))["x"] == np.random.default_rng(0).standard_normal(7)).all()
    says = declared(Made).arrays["x"].start.says
    assert says == '3; N(0, 1) with start = "normal"; G with start = "grads"' and needs(Made) == ("grads",)


def test_found_is_called_once_at_a_site():
    calls = []

    def both(method, facts):
        calls.append(facts["site"])
        return dict(A=facts.W[:, 0], B=facts.W[0])

    @dataclass(frozen=True)
    class Made(Plain, register=False):
        A = trained("out", start=found(both, "columns"))
        B = trained("in", start=found(both, "rows"))
        m = stored("out", start=found(lambda method, facts: facts.W.sum(axis=1), "Σ W"))

    own = drawn(Made())
    assert np.array_equal(own["A"], LINEAR.W[:, 0]) and np.array_equal(own["B"], LINEAR.W[0])
    assert np.array_equal(own["m"], LINEAR.W.sum(axis=1)) and calls == [LINEAR.name]


def test_found_together_decides_for_all_sites():
    def share(method, every):
        assert [f.index for f in every] == [0, 1, 2]
        ranks = {f["site"]: n for n, f in enumerate(every)}
        return {name: dict(A=np.full((n, 9), 1.0 * n), r=n) for name, n in ranks.items() if n}

    @dataclass(frozen=True)
    class Made(Plain, register=False):
        r: int = count(2)
        A = trained("r", "in", start=found_together(share, "shared out", needs=("inputs",)))
        B = trained("out", "r")

    every = [Site(f"layers.{i}.attn.q.weight", (7, 9), "linear", ARCH) for i in range(3)]
    got = draw_all(Made(), every, np.random.default_rng(0))
    assert list(got) == [s.name for s in every[1:]]  # the first is given up
    for n, (method, own) in enumerate(got.values(), 1):
        assert (
            method.r == n and own["A"][0].shape == (n, 9) and (own["A"][0] == n).all() and own["B"][0].shape == (7, n)
        )
    assert needs(Made) == ("inputs",) == needs(Made())


def test_sites_whose_settings_differ_are_decided_for_together():
    """In the model's order, each by its own settings; drawn at all sites of one setting, then at those of the next."""

    def doubled(method, every):
        assert [(f.index, f.method.r, len(f.sites)) for f in every] == [(0, 1, 3), (1, 3, 3), (2, 1, 3)]
        return {f["site"]: dict(r=2 * f.method.r) for f in every}

    @dataclass(frozen=True)
    class Made(Plain, register=False):
        r: int = count(1)
        A = trained("r", "in", start=normal())
        B = trained("out", start=found_together(doubled, "doubled"), when="r < 0")  # it decides, and is not there

    every = [Site(f"layers.{i}.attn.q.weight", (7, 9), "linear", ARCH) for i in range(3)]
    got = draw_all(Made(), every, np.random.default_rng(0), {every[1].name: Made(r=3)})
    rng = np.random.default_rng(0)
    assert list(got) == [every[0].name, every[2].name, every[1].name]
    for method, own in got.values():
        assert np.array_equal(own["A"][0], rng.standard_normal((method.r, 9)))
    assert [m.r for m, _ in got.values()] == [2, 2, 6]


def test_what_starts_measure():
    get = found(lambda method, facts: facts.site.grad, "the gradient", needs=("grads",))

    class Made(Plain, register=False):
        x = trained("out", "in", start=either("linear", get, fill(0)))
        y = trained("out", "in", start=zero_if("linear", found(lambda m, f: 0, "", needs=("inputs", "grads"))))

    @dataclass(frozen=True)
    class Chosen(Plain, register=False):
        start: str = choice("zero", "found")
        x = trained("out", "in", start=either("start == 'found'", get))

    assert needs(Chosen) == needs(Chosen(start="found")) == ("grads",) and needs(Chosen()) == ()
    assert needs(Made) == ("grads", "inputs") and needs(METHODS["lora"]) == () and needs(METHODS["eva"]) == ("inputs",)


@pytest.mark.parametrize(
    ("start", "shape", "says"),
    [
        (found(lambda m, f: np.zeros((9, 7)), "turned"), ("out", "in"), r"x is declared as \(7, 9\) at .*, its start is \(9, 7\)"),
        (found(lambda m, f: np.zeros(7), "short"), ("out", "1"), r"declared as \(7, 1\) .* its start is \(7,\)"),
        (found(lambda m, f: 0.0, "none"), ("out",), r"declared as \(7,\) .* its start is \(\)"),
    ],
)  # fmt: skip
def test_a_start_of_another_shape_is_refused(start, shape, says):
    with pytest.raises(Bad, match=says):
        of(start, LINEAR, shape=shape)


# --- when, each, shared, whole ----------------------------------------------------------------------------------------


def test_when_it_is_there():
    @dataclass(frozen=True)
    class Made(Plain, register=False):
        lora_bias: bool = False
        c = trained("out", when="lora_bias and not embedding")
        m = stored("d", when="embedding")

    assert drawn(Made()).keys() == set() and drawn(Made(lora_bias=True)).keys() == {"c"}
    assert drawn(Made(lora_bias=True), TABLE).keys() == {"m"} == drawn(Made(), TABLE).keys()


def test_several_of_each():
    @dataclass(frozen=True)
    class Made(Plain, register=False):
        depth: int = count(3)
        both = each("depth", V=trained("n + 1", "in", start=normal()), v=stored("n + 1"))

    got = draw(Facts(Made(), LINEAR, np.random.default_rng(0)))
    assert list(got) == ["V0", "v0", "V1", "v1", "V2", "v2"]
    assert [a.shape for a, _ in got.values()] == [(1, 9), (1,), (2, 9), (2,), (3, 9), (3,)]
    assert [is_trained for _, is_trained in got.values()] == [True, False] * 3
    again = np.random.default_rng(0)
    for n in range(3):
        assert np.array_equal(got[f"V{n}"][0], again.standard_normal((n + 1, 9)))
    assert drawn(Made(depth=1)).keys() == {"V0", "v0"}
    assert array_of(Made, "V2").trained and not array_of(Made, "v1").trained
    assert array_of(Made, "V") is None and array_of(Made, "W0") is None


def test_of_several_some_may_not_be_there():
    @dataclass(frozen=True)
    class Made(Plain, register=False):
        biased: bool = False
        both = each("2", V=trained("in"), v=trained("n + 1", when="biased and n or embedding"))

    assert drawn(Made()).keys() == {"V0", "V1"} and drawn(Made(biased=True)).keys() == {"V0", "V1", "v1"}


def test_shared_arrays_are_drawn_once_for_all_sites():
    @dataclass(frozen=True)
    class Made(Plain, register=False):
        targets: str = "attn.q.weight attn.v.weight"
        r: int = count(2)
        A = stored("r", "in_max", start=normal(), shared=True)
        b = trained("r", "sites", shared=True)
        B = trained("out", "r")
        V = each("2", shared=True, V=trained("r", start=normal()))

    adapter = attach(tiny.model(), Made()).adapters[0]
    common = adapter.grouped()[""]
    assert {k: a.shape for k, a in common.items()} == dict(A=(2, 24), b=(2, 4), V0=(2,), V1=(2,))
    assert all(own.keys() == {"B"} for site, own in adapter.grouped().items() if site)
    assert {":b", ":V0"} <= adapter.trained and ":A" in adapter.stored
    assert array_of(Made, "A").shared and array_of(Made, "V1").shared and not array_of(Made, "B").shared


@dataclass(frozen=True)
class Halves(Method, register=False):
    """What is in front of a layer's middle has one A."""

    takes = "linears"
    r: int = count(2)
    A = trained("r", "in", start=normal(), shared_by=lambda at: {s: s.replace("attn.v", "attn.q") for s in at})
    B = trained("out", "r", start=normal())

    def change(self, *, A, B):
        return B @ A


def test_some_sites_share_an_array_that_one_of_them_holds():
    model, targets = tiny.model(), ["attn.v.weight", "attn.q.weight", "attn.o.weight"]
    adapted = attach(model, Halves(), targets=targets)
    own = adapted.adapters[0].grouped()
    assert {s for s, a in own.items() if "A" in a} == {f"layers.{i}.attn.{k}.weight" for i in (0, 1) for k in "qo"}
    q, v = (f"layers.1.attn.{k}.weight" for k in "qv")
    run = adapted.run()
    assert np.allclose(run.param(v), model.params[v] + own[v]["B"] @ own[q]["A"], rtol=0, atol=1e-14)
    assert not np.array_equal(own[q]["A"], own["layers.0.attn.q.weight"]["A"])
    moved = adapted.replace({f"default/{q}:A": own[q]["A"] + 1})
    assert (moved.run().param(v) != run.param(v)).any() and (moved.run().param(q) != run.param(q)).any()


def test_sites_that_share_in_layers():
    sites = [f"layers.{i}.{k}.weight" for i in range(5) for k in "qv"]
    made = dataclass(frozen=True)(
        type("Made", (Plain,), dict(__annotations__=dict(n=int, group=str), n=2, group=""), register=False)
    )
    at = dict.fromkeys(sites, made())
    assert in_layers()(at) == {s: sites["v" in s] for s in sites}
    assert in_layers("n")(at) == {
        f"layers.{i}.{k}.weight": f"layers.{i - i % 2}.{k}.weight" for i in range(5) for k in "qv"
    }
    one = {**at, **dict.fromkeys(sites[2:], made(n=3, group="rest"))}
    assert in_layers()(one) == {s: s if s in sites[:2] else sites[2] for s in sites}
    assert in_layers("n")(one) == {s: s if i < 2 else sites[i - (i - 2) % 3] for i, s in enumerate(sites)}


def test_what_is_shared_has_one_shape_at_all_its_sites():
    said = r"halves: layers.0.attn.v.weight shares A with layers.0.attn.q.weight, where it is \(2, 24\); here it would be \(3, 24\)"
    with pytest.raises(Bad, match=said):
        attach(tiny.model(), Halves(), targets="attn.q.weight attn.v.weight", patterns={"attn.v.weight": {"r": 3}})


def test_the_sites_own_shape():
    class Made(Plain, register=False):
        W1 = trained(..., start=found(lambda method, facts: facts.W, "W"))

    assert np.array_equal(drawn(Made())["W1"], LINEAR.W)
    bias = Site("layers.0.mlp.up.bias", (40,), "bias", ARCH, np.ones(40))
    assert drawn(Made(), bias)["W1"].shape == (40,)


# --- parts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part(Plain, register=False):
    """What the method below is built over."""

    name = "part"
    r: int = count(2)
    start: str = choice("of its own", "random")  # a name that the method below has, too
    lora_bias: bool = False
    A = trained("r", "in", start=normal())
    B = trained("out", "r")
    c = trained("out", when="lora_bias")


@dataclass(frozen=True)
class Over(Plain, register=False):
    """Two of them."""

    name = "over"
    experts: tuple[Part, ...] = parts(Part, (Part(), Part(r=3)))
    also: bool = False
    start: str = choice("zero", "random")
    own = of_parts("experts", trained="also", B=either("start == 'random'", fill(7)))


def test_arrays_of_parts():
    got = draw(Facts(Over(experts=(Part(), Part(r=3, lora_bias=True))), LINEAR, np.random.default_rng(0)))
    assert {k: a.shape for k, (a, _) in got.items()} == dict(A0=(2, 9), B0=(7, 2), A1=(3, 9), B1=(7, 3), c1=(7,))
    assert not any(is_trained for _, is_trained in got.values())
    assert all(is_trained for _, is_trained in draw(Facts(Over(also=True), LINEAR, np.random.default_rng(0))).values())
    rng = np.random.default_rng(0)
    assert np.array_equal(got["A0"][0], rng.standard_normal((2, 9)))
    assert np.array_equal(got["A1"][0], rng.standard_normal((3, 9)))
    assert not got["B0"][0].any() and (drawn(Over(start="random"))["B1"] == 7).all()


def test_a_start_may_be_made_of_the_arrays_of_parts():
    class Made(Over, register=False):
        P = stored("out", "in", start=found(lambda m, facts: facts.drawn["B1"] @ facts.drawn["A1"], "B1 A1"))

    got = {k: a for k, (a, _) in draw(Facts(Made(start="random"), LINEAR, np.random.default_rng(0))).items()}
    assert np.array_equal(got["P"], got["B1"] @ got["A1"]) and got["P"].any()


def test_parts_are_of_their_class():
    for wrong, says in (((), "one or more .*Part"), ((METHODS["lora"](),), "one or more .*Part"), (Part(), "tuple")):
        with pytest.raises(Bad, match=f"over: experts must be .*{says}"):
            Over(experts=wrong)


# --- requirements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demanding(Plain, register=False):
    """Demands."""

    name = "demanding"
    r: int = count(4)
    block: int = at_least(0, 2)
    exact: bool = False
    half = size("in / 2")
    first = fact(lambda method, site: site.layer == 0)
    one = requires("r != block", "r and block must differ, both are {r}")
    exactly = requires("r > 1", "exact needs r above 1, found {r}", when="exact")
    even = requires("in == 2 half", "expected an even width, found {in}", when="linear", error=Unfit)
    least = requires("r <= min(in, out)", "r must be at most {min(in, out)}, found {r}", when="linear and not exact")
    early = requires("first or exact", "expected a first layer, found {site}")
    A = trained("r", "half", start=normal())


def test_what_is_required_of_settings_is_so_of_every_instance():
    with pytest.raises(Bad, match=r"^demanding: r and block must differ, both are 2$"):
        Demanding(r=2)
    with pytest.raises(Bad, match=r"^demanding: exact needs r above 1, found 1$"):
        Demanding(r=1, exact=True)
    assert Demanding(r=1).r == 1


def test_what_divides_both_widths():
    class Made(Demanding, register=False):
        name = "demanding"
        early = least = None
        fits = divides("r")

    site = Site("layers.0.attn.q.weight", (6, 8), "linear", ARCH)
    assert drawn(Made(r=1), site) and drawn(Made(r=2, block=0), site)
    for r in (3, 4):  # each divides one of them
        with pytest.raises(Bad, match=rf"^demanding: r must divide 6 and 8, both widths, found {r}, at layers"):
            drawn(Made(r=r), site)


def test_what_is_required_of_a_site_is_so_when_it_is_attached():
    even = Site("layers.0.attn.q.weight", (3, 8), "linear", ARCH)
    assert drawn(Demanding(r=3), even)["A"].shape == (3, 4)
    with pytest.raises(Bad, match=r"^demanding: r must be at most 3, found 4 at layers\.0\.attn\.q\.weight$"):
        drawn(Demanding(), even)
    assert drawn(Demanding(exact=True), even)["A"].shape == (4, 4)
    with pytest.raises(Unfit, match=r"expected an even width, found 9 at layers\.0"):
        drawn(Demanding())
    with pytest.raises(Bad, match=r"expected a first layer, found layers\.1\.attn\.q\.weight at"):
        drawn(Demanding(r=3), Site("layers.1.attn.q.weight", (3, 8), "linear", ARCH))
    with pytest.raises(Bad, match=r"r must be at most 12, found 13 at layers\.0\.attn\.v\.weight"):
        attach(tiny.model(), Demanding(r=13), targets="layers.0.attn.v.weight")


# --- held, rates, hooks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held(Plain, register=False):
    """Over a base in four bits, in the first layer."""

    targets: str = "attn.q.weight"
    W = held(lambda method, facts: quantize(facts.W, 16) if facts.site.layer == 0 else None)


def test_how_the_base_is_held():
    model = tiny.model()
    adapted = attach(model, Held())
    assert isinstance(adapted.model.params["layers.0.attn.q.weight"], FourBits)
    assert np.shares_memory(*(m.params["layers.1.attn.q.weight"] for m in (adapted.model, model)))
    assert not isinstance(model.params["layers.0.attn.q.weight"], FourBits)
    assert isinstance(attach(Adapted(model), Held()).model.params["layers.0.attn.q.weight"], FourBits)

    class Free(Held, register=False):
        W = None

    assert declared(Held).held is not None and declared(Free).held is None
    assert attach(model, Free()).model is model


def test_rates():
    @dataclass(frozen=True)
    class Made(Plain, register=False):
        ratio: float = free(16.0)
        A = trained("in")
        B = trained("out", rate="2 ratio")
        V = each("2", V=trained("out", rate="3"))

    made = Made(ratio=1.5)
    assert (rate(made, "A"), rate(made, "B"), rate(made, "V1"), rate(made, "else")) == (1.0, 3.0, 3.0, 1.0)
    assert type(rate(made, "B")) is float


def test_hooks_that_step_in():
    @dataclass(frozen=True)
    class Made(Plain, register=False):
        gamma: float = free(0.0)

        @when("gamma > 0")
        def after_step(self, step):
            """Only then."""

    class Always(Made, register=False):
        def after_backward(self, step):
            """In any case."""

    assert not intervenes(Made()) and intervenes(Made(gamma=1.0)) and intervenes(Always()) and not intervenes(Plain())
    assert intervenes(METHODS["adalora"]()) and not intervenes(METHODS["lora"]())


# --- classes ----------------------------------------------------------------------------------------------------------


class Parent(Plain, register=False):
    """Three arrays, a letter, a rule."""

    m = size("out / 2")
    A = trained("m", "in", start=normal())
    B = trained("out", start=normal())
    C = stored("in", start=normal())
    rule = requires("out > 1", "expected more than one output")


def test_a_subclass_declares_again_and_takes_back():
    class Child(Parent, register=False):
        m = size("1")
        C = trained("in", "2", start=fill(2))
        B = None
        D = trained("m")

    assert list(declared(Child).arrays) == ["A", "C", "D"] and list(declared(Parent).arrays) == ["A", "B", "C"]
    own = drawn(Child())
    assert own["A"].shape == (1, 9) and (own["C"] == 2).all() and own["C"].shape == (9, 2) and own["D"].shape == (1,)
    assert array_of(Child, "B") is None and array_of(Child, "C").trained

    class Grandchild(Child, register=False):
        B = trained("out", start=fill(5))
        rule = None

    assert (drawn(Grandchild())["B"] == 5).all()
    assert declared(Grandchild).required == () and len(declared(Child).required) == 1
    # what is declared again keeps its place, and so what is drawn after it
    assert np.array_equal(drawn(Grandchild())["A"], drawn(Child())["A"])


def test_declarations_are_no_settings():
    import dataclasses

    assert [f.name for f in dataclasses.fields(Demanding)] == ["targets", "r", "block", "exact"]
    for cls in METHODS.values():
        assert not {f.name for f in dataclasses.fields(cls)} & set(declared(cls).arrays), cls.name


def test_every_shipped_start_says_something():
    for cls in METHODS.values():
        for name, array in declared(cls).arrays.items():
            assert array.start.says, (cls.name, name)


def test_sites_of_a_model_have_what_declarations_ask_for():
    for family in tiny.ARCHS:
        for site in sites(tiny.model(family)).values():
            facts = Facts(Plain(), site)
            assert facts["size"] >= 1 and facts[site.kind] is True and facts["site"] == site.name


def test_extremes_are_in_order_and_of_equals_the_first_counts():
    @dataclass(frozen=True)
    class Most(Method, register=False):
        top: bool = True
        p = stored("4", start=extremes("4", "top"), below="out in", distinct_with="p")

    W = np.array([[2.0, -3.0, 2.0], [1.0, -2.0, 3.0]])
    site = Site("x.weight", W.shape, "linear", tiny.ARCHS["llama"], W)
    found = {top: draw(Facts(Most(top=top), site))["p"][0].tolist() for top in (True, False)}
    assert found == {True: [1, 5, 0, 2], False: [3, 0, 2, 4]}


@pytest.mark.parametrize("start", [1.0, "normal", None])
def test_a_start_is_one_of_those_there_are(start):
    with pytest.raises(
        Bad, match=r"^start: expected how an array begins, such as fill\(1\.0\) or normal\(0\.02\), found "
    ):
        trained("in", start=start)
