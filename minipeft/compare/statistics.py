"""What follows from numbers of several seeds on the same examples: differences, intervals, and which are more than chance.

Two methods are compared on the same held-out examples, started from the same seeds: with d[s, i] the difference of their
losses of example i after training with seed s, the mean of d varies because other seeds and because other examples would
have been possible. Both are drawn at random and crossed, so its variance is estimated as

    v = σ̂²(seeds)/S + σ̂²(examples)/n − σ̂²(rest)/(S n)

with σ̂² the sample variances of the means over examples (one a seed), of the means over seeds (one an example), and of
what neither explains, which the first two both hold (Cornfield & Tukey 1956, "Average values of mean squares in factorials";
Owen 2007, "The pigeonhole bootstrap", https://arxiv.org/abs/0712.1111). The mean over √v is judged by Student's t with
Satterthwaite's degrees of freedom. With one seed only examples vary, and nothing can be said of other seeds.

Many pairs are compared at once: the probabilities are adjusted by Holm's rule, so that with 95 % probability not one pair
is called different that is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit  # of Student's t: its distribution function, and the inverse

LEVEL = 0.95  # of the intervals; 1 − LEVEL is what all tests together may err


@dataclass(frozen=True)
class Estimate:
    """A mean, half the width of its interval, and the probability of a mean so far from 0 if it were 0."""

    mean: float
    half: float
    p: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half


def estimate(d: np.ndarray) -> Estimate:
    """The mean of d (seeds, examples) for other seeds and other examples."""
    d = np.asarray(d, np.float64)
    (S, n), mean = d.shape, float(d.mean())
    seeds, examples = d.mean(axis=1), d.mean(axis=0)
    rest = d - seeds[:, None] - examples + mean
    by_seed = _variance((seeds - mean) ** 2, S - 1) / S
    by_example = _variance((examples - mean) ** 2, n - 1) / n
    both = _variance(rest**2, (S - 1) * (n - 1)) / (S * n)
    v = max(by_seed + by_example - both, by_seed, by_example)  # an estimate may come out below what it must contain
    if v <= (1e-12 * max(abs(mean), 1e-300)) ** 2:  # nothing varies
        return Estimate(mean, 0.0, 1.0 if mean == 0 else 0.0)
    parts = [(x, k) for x, k in ((by_seed, S - 1), (by_example, n - 1)) if k > 0 and x > 0]
    df = v**2 / sum(x**2 / k for x, k in parts)
    half = float(stdtrit(df, (1 + LEVEL) / 2) * np.sqrt(v))
    return Estimate(mean, half, float(2 * stdtr(df, -abs(mean) / np.sqrt(v))))


def _variance(squares: np.ndarray, df: int) -> float:
    return float(squares.sum() / df) if df > 0 else 0.0


def holm(p: Mapping[tuple[str, str], float]) -> set[tuple[str, str]]:
    """The comparisons that are more than chance, all of them judged together (Holm 1979): the smallest p is held against
    (1 − LEVEL)/m, the next against (1 − LEVEL)/(m − 1), … until one fails.

    >>> sorted(holm({("a", "b"): 0.01, ("a", "c"): 0.02, ("b", "c"): 0.3}))
    [('a', 'b'), ('a', 'c')]
    >>> holm({("a", "b"): 0.03, ("a", "c"): 0.04, ("b", "c"): 0.3})
    set()
    """
    kept = set()
    for i, pair in enumerate(sorted(p, key=lambda k: p[k])):
        if p[pair] > (1 - LEVEL) / (len(p) - i):
            break
        kept.add(pair)
    return kept


def alike(names: Sequence[str], different: set[tuple[str, str]]) -> list[list[str]]:
    """The largest groups of names no two of which are different, in the order of `names`; a name may be in several.

    >>> alike("abcd", {("a", "c"), ("a", "d"), ("b", "d")})
    [['a', 'b'], ['b', 'c'], ['c', 'd']]
    """
    groups: list[set[str]] = []

    def grow(group: set[str], open_: set[str], closed: set[str]) -> None:  # Bron & Kerbosch 1973
        if not open_ and not closed:
            groups.append(group)
        for name in sorted(open_):
            near = {o for o in names if o != name and (o, name) not in different and (name, o) not in different}
            grow(group | {name}, open_ & near, closed & near)
            open_, closed = open_ - {name}, closed | {name}

    grow(set(), set(names), set())
    ordered = [[n for n in names if n in g] for g in groups]
    return sorted(ordered, key=lambda g: [names.index(n) for n in g])
