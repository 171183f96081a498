"""Intervals and tests, each against another way to the same number."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from minipeft.compare.statistics import LEVEL, alike, estimate, holm


@given(st.integers(2, 40), st.integers(0, 1000))
def test_one_seed_is_the_t_test_over_examples(n, seed):
    d = np.random.default_rng(seed).standard_normal((1, n)) + 0.3
    found, want = estimate(d), stats.ttest_1samp(d[0], 0.0)
    assert found.p == pytest.approx(want.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(want.confidence_interval(LEVEL)), rel=1e-9)


@given(st.integers(2, 9), st.integers(0, 1000))
def test_if_seeds_alone_vary_it_is_the_t_test_over_seeds(S, seed):
    a = np.random.default_rng(seed).standard_normal(S) + 0.3
    found, want = estimate(np.repeat(a[:, None], 50, axis=1)), stats.ttest_1samp(a, 0.0)
    assert found.p == pytest.approx(want.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(want.confidence_interval(LEVEL)), rel=1e-9)


@pytest.mark.parametrize("of_seeds", [0.0, 0.05, 0.5])
def test_intervals_hold_the_mean_as_often_as_they_say(of_seeds):
    """Seeds, examples and both at random: 95 of 100, up to three standard errors of 800 draws. Pooling all as independent
    gives less than 80 in each."""
    rng, S, n, draws = np.random.default_rng(1), 4, 100, 800
    inside = 0
    for _ in range(draws):
        d = (
            of_seeds * rng.standard_normal((S, 1))
            + 0.5 * rng.standard_normal((1, n))
            + 0.5 * rng.standard_normal((S, n))
        )
        e = estimate(d)
        inside += e.low <= 0 <= e.high
    assert abs(inside / draws - LEVEL) < 3 * np.sqrt(LEVEL * (1 - LEVEL) / draws)


def test_what_does_not_vary():
    assert estimate(np.zeros((3, 4))) == estimate(np.zeros((1, 1))) and estimate(np.zeros((3, 4))).p == 1
    same = estimate(np.full((3, 4), 0.1))
    assert same.mean == pytest.approx(0.1) and same.half == 0 and same.p == 0


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(values):
    """Holm rejects just what Bonferroni rejects in every set of hypotheses that holds it (Marcus, Peritz & Gabriel 1976)."""
    p = {(str(i), ""): x for i, x in enumerate(values)}
    sets = list(chain.from_iterable(combinations(p, k) for k in range(1, len(p) + 1)))
    rejected = {h for h in p if all(min(p[i] for i in s) <= (1 - LEVEL) / len(s) for s in sets if h in s)}
    assert holm(p) == rejected


@given(st.integers(1, 6), st.data())
def test_groups_are_the_largest_sets_without_a_difference(n, data):
    names = "abcdef"[:n]
    different = {pair for pair in combinations(names, 2) if data.draw(st.booleans())}
    fine = [
        s
        for k in range(1, n + 1)
        for s in combinations(names, k)
        if not any(pair in different for pair in combinations(s, 2))
    ]
    largest = [list(s) for s in fine if not any(set(s) < set(t) for t in fine)]
    assert alike(names, different) == sorted(largest)
