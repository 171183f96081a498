"""Hypothesis strategies and a judge for other projects' tests: cases drawn anew, with what minipeft wants of them.

    from hypothesis import given
    from minipeft.conformance.strategies import agree, case

    @given(case("METHOD"))
    def test_mine(c):
        agree(c, y=mine(**c.tensors, alpha=c.config["alpha"]))

A case has other numbers every time, in float64 or float32, and other settings within those its method allows.
"""

from __future__ import annotations

import contextlib
import dataclasses
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minipeft.conformance.cases import ASKS, Case
from minipeft.conformance.judge import judge
from minipeft.conformance.own import config_of
from minipeft.conformance.places import arrays_at, place_of
from minipeft.conformance.record.one import answer, conditions, inputs_of, moved, single
from minipeft.conformance.record.variants import variants
from minipeft.conformance.results import Result
from minipeft.errors import Bad, near
from minipeft.method import Method, method_class
from minipeft.settings import part_of


@cache
def _variants(method: str) -> tuple[tuple[str, Method], ...]:
    """Made once, not for every case that is drawn."""
    return tuple(variants(method_class(method)))


@st.composite
def case(draw: Any, method: str, ask: str = "forward", dtype: Any = np.float64) -> Case:
    """A case of a method: its settings, numbers and options drawn. Raises `Bad` for what is unknown or has no such ask."""
    if ask not in ("forward", "vjp", "merge", "delta"):
        raise Bad(f"ask {ask!r}: expected forward, vjp, merge or delta{near(ask, ASKS)}")
    cls = method_class(method)
    _, chosen = draw(st.sampled_from(_variants(method)), label="variant")
    known = {f.name for f in dataclasses.fields(cls)}
    if "alpha" in known:
        chosen = dataclasses.replace(chosen, alpha=draw(st.floats(0.5, 9.0), label="alpha"))
        with contextlib.suppress(Bad):  # where another setting leaves no choice
            chosen = dataclasses.replace(chosen, r=draw(st.integers(1, 5), label="r"))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="numbers"))
    place = place_of(chosen)
    inputs = inputs_of(place, chosen, rng)
    start, trained = arrays_at(place, chosen, rng, inputs)
    arrays = moved(start, tuple(start) if part_of(type(chosen)) else trained, rng)
    roles = {k: "base" if k in place.given and k not in ("ids", "task_ids", "input_ids") else "input" for k in inputs}
    roles |= {k: "array" if k in trained else "stored" for k in arrays}
    made = Case(
        method,
        "drawn",
        "drawn",
        "forward",
        config_of(chosen),
        place=place.name,
        inputs={**inputs, **arrays},
        roles=roles,
    )
    if ask == "vjp":
        g = {f"g.{k}": single(rng.standard_normal(v.shape)) for k, v in answer(made).items()}
        made = dataclasses.replace(
            made, ask=ask, inputs={**made.inputs, **g}, roles={**made.roles, **dict.fromkeys(g, "cotangent")}
        )
    made = dataclasses.replace(made, ask=ask)
    return dataclasses.replace(made, want=answer(made), cond=conditions(made), dtype=dtype)


def agree(given: Case, **got: Any) -> None:
    """Raise `AssertionError` unless these are the results of a case: which tensor, which element, by how much, and whose error.

    Names with a dot, as `**{"x": …}`. Tensors that the case does not want are not looked at; all it wants must be there.
    """
    from minipeft.conformance.mutants.killing import equals

    arrays = {k: np.asarray(v) for k, v in got.items()}
    result = judge(given, arrays, Result(implementation="yours", version="", id=given.id, outcome="SKIP"))
    if result.outcome != "PASS":
        like = equals(given, arrays) if all(k in arrays for k in given.want) else []
        told = f"; it equals {', '.join(like)}" if like else ""
        where = (
            f" at {result.worst}: expected {result.expected:.17g}, found {result.found:.17g}" if result.worst else ""
        )
        raise AssertionError(f"{given.method}, {dict(given.config)}: {result.reason}{where}{told}")
