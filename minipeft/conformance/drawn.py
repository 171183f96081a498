"""Hypothesis strategies for the settings of a method, from their declarations: what they may be, and what they may not.

    from hypothesis import given
    from minipeft.conformance import drawn, tiny

    @given(drawn.settings_strategy(Mine, tiny.arch("llama")))
    def test_mine(method): ...

Numbers are those of small models. Settings that do not go together are no examples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from functools import lru_cache
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from minipeft.errors import Bad
from minipeft.method import Method, is_weight, routes
from minipeft.model.arch import Arch
from minipeft.settings import KINDS, Bound, Choice, kind, small

PIECES: dict[str, list[tuple[Any, SearchStrategy[Any]]]] = {  # one of them, and how it is drawn
    "int": [(i, st.just(i)) for i in range(9)],
    "float": [
        *((x, st.just(x)) for x in (0.0, 1.0, 2.0, -1.5)), (0.5, st.floats(1 / 16, 1)), (4.0, st.floats(1, 8)),
    ],
    "bool": [(x, st.just(x)) for x in (False, True)],
    "None": [(None, st.none())],
    "tuple[int, ...]": [((3,), st.lists(st.integers(0, 40), min_size=1, max_size=4, unique=True).map(tuple))],
}  # fmt: skip
STRANGE = (-1, 0, 10**12, 0.5, -0.5, 1.0, 3.0, 10**400, math.nan, math.inf, True, None, "", "eight", (), ("a",), b"x", 1j)  # fmt: skip
TRIES = 10  # to find settings that go together


@st.composite
def settings_strategy(draw: Any, cls: type[Method], arch: Arch) -> Method:
    """An instance of the class: every setting as suits a small model of this architecture, or drawn from what it may be."""
    for _ in range(TRIES):
        given = {name: draw(strategy, label=name) for name, strategy in _every(cls, arch).items()}  # type: ignore[arg-type]
        with contextlib.suppress(Bad):  # they do not go together
            return cls(**given)
    return reject()


def outside(cls: type[Method]) -> SearchStrategy[tuple[str, Any]]:
    """(setting, value) with a value that it may not have."""
    pairs = [(f.name, x) for f in dataclasses.fields(cls) for x in STRANGE if _typed(f) and not _may_be(f, x)]
    return st.sampled_from(pairs)


@lru_cache
def _every(cls: type[Method], arch: Arch) -> dict[str, SearchStrategy[Any]]:
    usual = small(cls, arch)
    return {f.name: _of(cls, f, getattr(usual, f.name), arch) for f in dataclasses.fields(cls)}


def _of(cls: type[Method], f: Any, usual: Any, arch: Arch) -> SearchStrategy[Any]:
    """What a setting may be."""
    rules = f.metadata.get("rules", ())
    if chosen := [r for r in rules if isinstance(r, Choice)]:
        return st.sampled_from(chosen[0].options)
    if part := f.metadata.get("parts"):
        made = st.lists(settings_strategy(part, arch), min_size=1, max_size=2).map(tuple)
    elif kind(f) == "str":
        made = st.sampled_from(_words(cls, f.name, usual))
    elif _typed(f):
        pieces = [piece for word in kind(f).split("|") for piece in PIECES[word.strip()]]
        made = st.one_of(*(drawn for one, drawn in pieces if _may_be(f, one)))
    else:
        return st.just(usual)
    return st.just(usual) | made.filter(lambda x: _may_be(f, x))


def _words(cls: type[Method], name: str, usual: str) -> list[str]:
    """Where a method may attach, and what else is a text."""
    if name != "targets":
        return [usual, "", *(["attn.k.weight"] if usual.endswith(".weight") else [])]
    linears = (is_weight(cls) or routes(cls)) and cls.takes not in ("biases", "norms")
    return [usual, *(["all-linear", "embed.tokens.weight|all-linear"] if linears else [])]


def _typed(f: Any) -> bool:
    return all(word.strip() in KINDS for word in kind(f).split("|"))


def _may_be(f: Any, x: Any) -> bool:
    """Whether a value has the type and lies in the range, whatever the other settings are."""
    if _typed(f) and not any(KINDS[word.strip()][0](x) for word in kind(f).split("|")):
        return False
    return x is None or all(isinstance(r, Bound) or r.fits(x) for r in f.metadata.get("rules", ()))
