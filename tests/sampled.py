"""Long products of cases: a part of them in the default suite, taken in turn, all the others in the wide one."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def in_turn(cases: Iterable[Any], every: int) -> list[Any]:
    """The cases, of which each `every`-th is in the default suite."""
    return _marked(cases, lambda i, case: i % every == 0)


def one_each(cases: Iterable[Any], of: Callable[[Any], Any]) -> list[Any]:
    """The cases, of which one of every kind is in the default suite: the kinds take theirs from different places of the order."""
    cases = list(cases)
    size = Counter(map(of, cases))
    kinds = {kind: n % size[kind] for n, kind in enumerate(size)}  # which of its cases is its turn
    seen: Counter = Counter()

    def taken(i: int, case: Any) -> bool:
        seen[of(case)] += 1
        return seen[of(case)] - 1 == kinds[of(case)]

    return _marked(cases, taken)


def _marked(cases: Iterable[Any], taken: Callable[[int, Any], bool]) -> list[Any]:
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=[] if taken(i, case) else [pytest.mark.wide]
        )
        for i, case in enumerate(cases)
    ]
