"""Settings drawn from their declarations: all that a declaration allows, nothing else; and what it does not allow is told."""

import dataclasses
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sampled import in_turn

from minipeft.conformance import laws, tiny
from minipeft.conformance.drawn import outside, settings_strategy
from minipeft.declare import Method, choice, count, free, parts, requires, within
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.settings import small

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))
ARCH = tiny.arch("llama")


@dataclass(frozen=True)
class Mine(Method, register=False):
    """One setting of each kind."""

    name = "mine"
    targets: str = "attn.q.weight"
    r: int = count(100, least=2, small=3)
    kept: int | None = count(None, least=0, most="r")
    share: float = within("(0, 1)", 0.5)
    s: float = free(4.0)
    word: str = choice("one", "two", "three")
    flag: bool = False
    over: tuple[LoRA, ...] = parts(LoRA, (LoRA(),), fits=lambda x: x.r > 1)
    both = requires("flag or word == 'one'", "only with flag is word {word}")

    def change(self, **arrays):
        return 0.0


@given(settings_strategy(Mine, ARCH))
def test_what_is_drawn_is_allowed(made):
    assert type(made) is Mine and 2 <= made.r <= 8 and 0 < made.share < 1 and (made.kept is None or made.kept <= made.r)
    assert made.flag or made.word == "one"
    assert 1 <= len(made.over) <= 2 and all(type(x) is LoRA and x.r > 1 for x in made.over)


def test_what_is_allowed_is_drawn():
    seen: list[Mine] = []

    @settings(max_examples=60, phases=[Phase.generate], database=None)
    @given(settings_strategy(Mine, ARCH))
    def drawn(made):
        seen.append(made)

    drawn()
    assert {2, 8} <= {m.r for m in seen} <= set(range(2, 9)) and {m.word for m in seen} == {"one", "two", "three"}
    assert {m.kept for m in seen} >= {None, 0} and {len(m.over) for m in seen} == {1, 2}
    assert {m.targets for m in seen} == {"attn.q.weight", "all-linear", "embed.tokens.weight|all-linear"}
    assert {m.flag for m in seen} == {True, False} == {m.over[0].rslora for m in seen}
    assert min(m.s for m in seen) < 0 < max(m.s for m in seen)
    assert min(m.share for m in seen) < 0.3 and max(m.share for m in seen) > 0.6
    assert len({m.over[0].r for m in seen}) > 2


@pytest.mark.parametrize("name", in_turn(SHIPPED, every=8))
def test_enough_of_what_is_drawn_stands_on_a_model(name):
    """The others are told, on one line, why they do not go together or do not fit."""
    seen: Counter = Counter()

    @settings(max_examples=10, phases=[Phase.generate], database=None)
    @given(st.data())
    def drawn(data):
        seen["drawn"] += 1
        family = data.draw(st.sampled_from(["llama", "bert"]))
        method = data.draw(settings_strategy(METHODS[name], tiny.arch(family)))
        seen["made"] += 1
        try:
            seen["stands"] += laws.case(method, family) is not None
        except Bad as why:
            assert "\n" not in str(why) and str(why).startswith(f"{name}: ")

    drawn()
    assert seen["drawn"] <= 2 * seen["made"] and seen["stands"] >= seen["made"] / 4, seen


@pytest.mark.parametrize("name", SHIPPED)
@given(data=st.data())
def test_what_is_not_allowed_is_told(name, data):
    key, x = data.draw(outside(METHODS[name]))
    usual = small(METHODS[name], ARCH)
    with pytest.raises(Bad) as found:
        dataclasses.replace(usual, **{key: x})
    says = str(found.value)
    assert says.startswith(f"{name}: {key} must ") and ", found " in says and "\n" not in says and len(says) < 300


def test_every_range_has_an_outside():
    """Of every setting with a type there is something that it may not be."""
    for name in SHIPPED:
        cls = METHODS[name]
        seen = {key for key, _ in outside(cls).elements}
        assert {f.name for f in dataclasses.fields(cls) if f.type in ("int", "float", "bool", "str")} <= seen, name
