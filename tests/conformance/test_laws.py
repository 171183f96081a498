"""All laws on all methods; and each law is seen to fail on an error planted for it."""

import dataclasses
import itertools
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import Phase, given, reject, settings
from hypothesis import strategies as st
from sampled import in_turn

from minipeft.changes import Sum
from minipeft.conformance import laws, tiny
from minipeft.conformance.drawn import settings_strategy
from minipeft.declare import each, fill, found, lowrank, normal, size, stored, trained
from minipeft.engine import fast
from minipeft.engine.tensor import OPS, op
from minipeft.errors import Bad
from minipeft.method import METHODS, Method, load_methods
from minipeft.settings import small

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))
FAMILIES = list(tiny.ARCHS)


def usual(name):
    """A family that the method fits."""
    return "bert" if name == "bitfit" else "llama"


def fits(name, family):
    return laws.case(small(METHODS[name], tiny.ARCHS[family]), family) is not None


def next_family(name):
    """Methods take the families in turn, each one that it fits."""
    turn = FAMILIES[SHIPPED.index(name) % len(FAMILIES)]
    return turn if fits(name, turn) else usual(name)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, np.float64) for name in SHIPPED] + in_turn([(name, np.float32) for name in SHIPPED], every=25),
)
def test_every_law_holds(name, dtype):
    verdicts = list(laws.check(METHODS[name], [next_family(name)], dtype=dtype))
    assert {v.law for v in verdicts if v.outcome == "pass"} == set(laws.LAWS)
    assert not [f"{v.law} on {v.family}: {v.reason}" for v in verdicts if v.outcome == "fail"]


@pytest.mark.wide
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_law_holds_elsewhere(name, family, dtype):
    verdicts = list(laws.check(METHODS[name], [family], dtype=dtype))
    assert not [f"{v.law} on {v.family}: {v.reason}" for v in verdicts if v.outcome == "fail"]


@pytest.mark.parametrize("name", in_turn(SHIPPED, every=12))
def test_every_law_holds_on_the_text_alone(name):
    with fast.text():
        verdicts = list(laws.check(METHODS[name], [next_family(name)], dtype=np.float64))
    assert {v.law for v in verdicts if v.outcome == "pass"} == set(laws.LAWS)
    assert not [f"{v.law}: {v.reason}" for v in verdicts if v.outcome == "fail"]


@pytest.mark.parametrize("name", SHIPPED)
def test_it_fits_most_families(name):
    """A method that fits nowhere would pass every law."""
    wanted = dict(bitfit=["bert"], cpt=["llama", "gpt2"]).get(name, ["llama", "bert"])
    assert all(fits(name, family) for family in wanted)


# --- settings drawn by Hypothesis ---------------------------------------------------------------------------------------

SLOW = {"learns", "frozen", "dtype"}  # these train; they are run at the usual settings above


@pytest.mark.parametrize("name", in_turn(SHIPPED, every=12))
@settings(max_examples=2, phases=[Phase.generate])  # no shrinking: one example takes up to a second
@given(data=st.data())
def test_laws_hold_for_drawn_settings(name, data):
    family = data.draw(st.sampled_from(["bert", "vit", "gpt2"] if name == "bitfit" else FAMILIES), label="family")
    method = data.draw(settings_strategy(METHODS[name], tiny.arch(family)), label="method")
    try:
        there = laws.case(method, family, seed=data.draw(st.integers(0, 99), label="seed"))
    except Bad:  # of the site, and told: see test_drawn.py
        reject()
    for law, holds in laws.LAWS.items():
        if there is not None and law not in SLOW:
            holds(there)


def test_an_identity_of_large_terms_that_cancel_is_one():
    """W + s (B A − B0 A0) is W but for the rounding of B A, which cond knows of."""
    large = METHODS["lora_ga"](r=1, targets="all-linear", direction="random", gamma=0.28, reading="peft")
    laws.identity(laws.case(large, "gpt2"))


# --- planted errors -----------------------------------------------------------------------------------------------------

DOC = """Yardstick: right, so that one thing can be wrong. Nobody 2026, https://example.org

    W' = W + B A

Merges   exactly.
Differs  on purpose.
"""


def _in_a_module_of_its_own(cls):
    """The laws read a method's page from the docstring of its module."""
    module = types.ModuleType(f"planted.{cls.__name__}", cls.doc)
    sys.modules[module.__name__] = module
    cls.__module__ = module.__name__


@dataclass(frozen=True)
class Right(Method, register=False):
    """LoRA without frills, of which every planted error changes one thing."""

    targets: str = "attn.q.weight attn.v.weight"
    r: int = 3
    doc = DOC
    A = trained("r", "in", start=normal(0.3))
    B = trained("out", "r")

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(register=False)
        _in_a_module_of_its_own(cls)

    def change(self, *, A, B):
        return lowrank(B, A)


_in_a_module_of_its_own(Right)


class Plain(Right):
    """The same as a matrix."""

    def change(self, *, A, B):
        return B @ A


def laws_broken(method):
    """{law: reason} of the laws that the method breaks on the tiny Llama."""
    METHODS[method.name] = type(method)  # loading a saved adapter looks its method up
    try:
        return {v.law: v.reason for v in laws.check(method, ["llama"]) if v.outcome == "fail"}
    finally:
        del METHODS[method.name]


@pytest.mark.parametrize("cls", [Right, Plain])
def test_the_yardstick_breaks_no_law(cls):
    assert not laws_broken(cls())


def test_a_start_that_is_no_identity():
    class Started(Right):
        B = trained("out", "r", start=fill(1e-9))

    assert "identity at layers.0.attn.q.weight" in laws_broken(Started())["identity"]


def test_an_identity_in_the_logits_alone():
    """RMS norm hides a factor on the last residual stream from the logits, but not from the site."""

    @dataclass(frozen=True)
    class Doubled(Method, register=False):
        targets: str = "layers.1.out"

        def apply(self, h, here):
            return h * 2.0

    with pytest.raises(laws.Broken, match=r"identity at layers\.1\.out"):
        laws.identity(laws.case(Doubled()))


def test_a_stored_array_that_moves():
    class Leaking(Right):
        c = stored("3", start=fill(1))

        def change(self, *, A, B, c):
            return lowrank(B, A)

        def after_step(self, step):
            for arrays in step.stored.values():
                c = getattr(arrays["c"].base, "obj", arrays["c"])  # what is left to whoever means it
                c *= 1.01

    assert "a stored array changed" in laws_broken(Leaking())["frozen"]


def test_a_write_to_the_base():
    class Writing(Right):
        def weight(self, W, *, A, B):
            W += 1e-3
            return W + B @ A

    assert "read-only" in laws_broken(Writing())["frozen"]


def test_training_that_trains_nothing():
    class Idle(Right):
        def change(self, *, A, B):
            return 0.0 * lowrank(B, A)

    assert "learns" in laws_broken(Idle())


@op
def too_large(x):
    """The identity, its gradient 1 % too large."""
    return x * 1.0, (lambda g: 1.01 * g,)


@op
def untransposed(x):
    """The transpose of a square matrix, its gradient left as it came."""
    return x.T.copy(), (lambda g: g,)


for planted in ("too_large", "untransposed"):
    del OPS[planted]  # they are no ops of the engine


@pytest.mark.parametrize("error", [too_large, untransposed], ids=lambda f: f.__name__)
def test_a_wrong_gradient(error):
    class Off(Right):
        def change(self, *, A, B):
            return B @ (error(A[:, :3]) @ A)

    broken = laws_broken(Off())
    assert list(broken) == ["gradient"] and "random direction of A" in broken["gradient"]


@dataclass(frozen=True, eq=False)
class Scaleless(Sum):
    """Twice the low rank, which the product with its factors forgets."""

    def onto(self, W):
        return (2.0 * Sum(self.terms)).onto(W)


@dataclass(frozen=True, eq=False)
class Turned(Sum):
    """A low rank whose product takes one factor for the other."""

    def linear(self, x, base, drop=None):
        (t,) = self.terms
        return base(x) + (x @ t.B) @ t.A


@dataclass(frozen=True, eq=False)
class Shifted(Sum):
    """A low rank whose table has its rows one further down."""

    def rows(self, ids, base):
        return super().rows((ids + 1) % base.shape[0], base)


def test_a_lost_scale_in_the_product():
    class Fast(Right):
        def change(self, *, A, B):
            return Scaleless(lowrank(B, A).terms)

    broken = laws_broken(Fast())
    assert "forward against weight at layers.0.attn.q.weight" in broken["forward"]
    assert "merged logits" in broken["merge"]


def test_a_transposed_factor_in_the_product():
    class Fast(Right):
        def change(self, *, A, B):
            return Turned(lowrank(B, A).terms)

    assert "forward" in laws_broken(Fast(targets="layers.0.attn.o.weight"))


def test_other_rows_of_a_table():
    class Fast(Right):
        takes = "linears and lookups"

        def change(self, *, A, B):
            return Shifted(lowrank(B, A).terms)

    assert (
        "forward against weight at embed.tokens.weight" in laws_broken(Fast(targets="embed.tokens.weight"))["forward"]
    )


def test_a_merge_that_forgets_something():
    """What `linear` does to the bias is not told to `merge`."""

    @dataclass(frozen=True, eq=False)
    class More(Sum):
        def linear(self, x, base, drop=None):
            return super().linear(x, base) + 1e-6

    class Halved(Right):
        def change(self, *, A, B):
            return More(lowrank(B, A).terms)

    assert "merged logits" in laws_broken(Halved())["merge"]


def test_a_float64_that_leaks():
    class Wide(Right):
        def change(self, *, A, B):
            return np.float64(0.5) * (B @ A)

    assert "became float64 in a float32 model" in laws_broken(Wide())["dtype"]


def test_ascent_instead_of_descent():
    class Uphill(Right):
        def after_backward(self, step):
            for arrays in step.grads.values():
                for name in arrays:
                    arrays[name] = -arrays[name]

    assert "learns" in laws_broken(Uphill())


def test_something_that_is_not_saved():
    ticks = itertools.count()

    class Remembering(Right):
        def change(self, *, A, B):
            return (B @ A) * (1 + 1e-3 * (next(ticks) % 7))

    assert "computes something else" in laws_broken(Remembering())["round_trip"]


# --- what is declared -------------------------------------------------------------------------------------------------


def declared_otherwise(**arrays):
    """What the law says of the arrays of `Right`, when another declaration is read than the one it was attached with."""
    there = laws.case(Right())

    class Otherwise(Right):
        pass

    for name, array in arrays.items():
        setattr(Otherwise, name, array)
    made = Otherwise()
    at = dict.fromkeys(there.adapter.at, made)
    adapter = dataclasses.replace(there.adapter, method=made, at=at)
    changed = dataclasses.replace(there.start, adapters=(adapter,))
    with pytest.raises(laws.Broken) as found:
        laws.table(dataclasses.replace(there, method=made, start=changed))
    return str(found.value)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (dict(A=trained("in", "r")), r"table: layers.0.attn.q.weight:A is said to be (24, 3), found (3, 24)"),
        (dict(A=stored("r", "in")), "A is said to be stored and is not"),
        (dict(B=None), "layers.0.attn.q.weight:B is not declared by otherwise"),
        (dict(C=trained("out")), "layers.0.attn.q.weight:C of otherwise is declared and nowhere"),
        (dict(A=trained("r", "in", shared=True)), ":A of otherwise is declared and nowhere"),
        (dict(A=trained("r", "in", when="embedding")), "A is not declared"),
        (dict(C=each("2", V=trained("r"))), "V0 of otherwise is declared and nowhere"),
        (dict(r=size("2")), "is said to be (2, 24), found (3, 24)"),
    ],
)
def test_declarations_that_are_not_true(arrays, says):
    assert says in declared_otherwise(**arrays)


def test_a_start_of_more_than_is_declared_is_refused():
    class Longer(Right):
        B = trained("out", "r", start=found(lambda method, facts: np.zeros((facts["out"], 4)), "too many"))

    with pytest.raises(
        Bad, match=r"longer: B is declared as \(24, 3\) at layers.0.attn.q.weight, its start is \(24, 4\)"
    ):
        laws.case(Longer())


def test_a_change_that_takes_other_arrays_than_are_declared():
    class Fewer(Right):
        C = trained("out")

    assert "unexpected keyword argument 'C'" in laws_broken(Fewer())["forward"]


def test_merges_is_true():
    class Misread(Right):
        doc = DOC.replace("Merges   exactly.", "Merges   no: it cannot.")

    assert list(laws_broken(Misread())) == ["table"]

    @dataclass(frozen=True)
    class Routed(Right):
        change = property()

        def forward(self, x, base, here, *, A, B):
            return base(x) + (x @ A.T) @ B.T

    assert "Merges says 'exactly.'" in laws_broken(Routed())["table"]


def test_unknown_families_are_named():
    with pytest.raises(Bad, match="did you mean llama"):
        list(laws.check(Right(), ["lama"]))


def test_an_error_in_a_method_s_own_code_breaks_the_law_and_names_the_line(monkeypatch):
    """Where it is attached, and in a law; a mistake in its settings stays one line."""
    from minipeft.methods.structured.c3a import C3A

    code = "def change(self, **arrays):\n    return missing\n"
    for file, where in (("<made up>", ""), (sys.modules[C3A.__module__].__file__, " (c3a.py, line 2)")):
        space: dict = {}
        exec(compile(code, file, "exec"), space)
        monkeypatch.setattr(C3A, "change", space["change"])
        found = [v for v in laws.check(small(C3A, tiny.arch("llama")), ["llama"]) if v.outcome == "fail"]
        assert {v.reason for v in found} == {f"NameError: name 'missing' is not defined{where}"} and len(found) > 3
    monkeypatch.setattr(laws, "attach", lambda *a, **k: {}["A"])
    assert [(v.law, v.reason) for v in laws.check(small(C3A, tiny.arch("llama")), ["llama"])] == [
        ("attach", "KeyError: 'A'")
    ]

    def bad(*args, **more):
        raise Bad("r must be at least 1")

    monkeypatch.setattr(laws, "attach", bad)
    with pytest.raises(Bad, match="r must be"):
        list(laws.check(small(C3A, tiny.arch("llama")), ["llama"]))
