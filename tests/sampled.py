"""Long products of cases: a part of them in the default suite, all of them in the slow one."""

import pytest


def in_turn(cases, every):
    """The cases, of which each `every`-th is in the default suite and the others are in the slow one."""
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=[pytest.mark.slow] if i % every else []) for i, case in enumerate(cases)]
