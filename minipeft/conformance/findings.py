"""Failures by what they have in common: one mistake is one finding, however many cases it fails.

A failure is diagnosed where its output equals that of a mutant, or of another setting. Of the causes that the failures share the one
that explains most comes first, then the one that explains most of the rest. What nothing explains stands together by check and tensor,
and errors by what was said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from minipeft.conformance.groups import GROUP_OF
from minipeft.conformance.incidents import addresses
from minipeft.conformance.results import Result
from minipeft.conformance.verdicts import implementations

WRONG = ("FAIL", "ERROR")


@dataclass(frozen=True)
class Finding:
    """Failures of one implementation that have one cause, the plainest first; `cause` is the mutant or setting whose output they
    equal, '' where there is none."""

    results: tuple[Result, ...]
    cause: str = ""

    @property
    def first(self) -> Result:
        """The failure to look at."""
        return self.results[0]

    @property
    def known(self) -> bool:
        """Whether all of it was expected."""
        return bool(self.first.expected_outcome)

    @property
    def count(self) -> str:
        """As `13 cases fail by one cause`."""
        n, first = len(self.results), self.first
        said = "is an error" if first.outcome == "ERROR" else "fails"
        if n == 1:
            return f"1 case {said}"
        said = "are errors" if first.outcome == "ERROR" else "fail"
        return f"{n} cases {said} " + ("by one cause" if self.cause else "alike")

    @property
    def why(self) -> str:
        """The cause in words, or what there is in place of one."""
        first = self.first
        if self.cause:
            return told(self.cause)[0]
        if self.known and (reason := first.reason.partition(". ")[2]):
            return reason
        if first.outcome == "ERROR":
            return first.reason
        return f"{first.tensor or 'the result'} of {first.check} is undiagnosed"

    @property
    def headline(self) -> str:
        """As `13 cases fail by one cause: the scale is α, not α/r (as in mlx-vlm #841)`."""
        seen = self.seen
        return f"{self.count}: {self.why}" + (f" (as in {seen})" if seen else "")

    @property
    def seen(self) -> str:
        """The incidents that the cause is named after."""
        return told(self.cause)[1] if self.cause else ""

    @property
    def others(self) -> list[str]:
        """Causes that would explain the same failures, in words."""
        shared = [c for c in self.first.diagnosis if c != self.cause and all(c in r.diagnosis for r in self.results)]
        return [told(c)[0] for c in shared]

    @property
    def addresses(self) -> list[str]:
        """Of their reports."""
        return addresses(self.seen)

    @property
    def rest(self) -> list[str]:
        """The ids of the others."""
        return [r.id for r in self.results[1:]]


def told(cause: str) -> tuple[str, str]:
    """A cause in words, and the incidents that it is named after."""
    from minipeft.conformance import mutants

    if cause in mutants.every():
        mutant = mutants.every()[cause]
        first, _, rest = mutant.about.partition(" ")
        first = first.lower() if first == "A" or (first.isalpha() and first[1:].islower()) else first  # a name stays
        return f"{first} {rest}".strip(), mutant.incidents
    return (cause if " " in cause else f"it is what {cause} gives, and another is asked for"), ""


def findings(results: Iterable[Result]) -> list[Finding]:
    """What is not as wanted: of each implementation in turn, what nobody expected first."""
    wrong = [r for r in results if r.outcome in WRONG]
    parts = ([r for r in wrong if r.implementation == name] for name in implementations(wrong))
    return [
        f
        for mine in parts
        for known in (False, True)
        for f in _covered([r for r in mine if bool(r.expected_outcome) == known])
    ]


def _covered(wrong: Sequence[Result]) -> list[Finding]:
    left, out = [r for r in wrong if r.diagnosis], []
    while left:
        counts = Counter(cause for r in left for cause in r.diagnosis)
        cause = max(counts, key=counts.__getitem__)  # of several the one that is named first
        out.append(_of([r for r in left if cause in r.diagnosis], cause))
        left = [r for r in left if cause not in r.diagnosis]
    rest = [r for r in wrong if not r.diagnosis]
    by: dict[Hashable, list[Result]] = {}
    for r in rest:
        by.setdefault(_alike(r), []).append(r)
    return out + sorted((_of(some) for some in by.values()), key=lambda f: -len(f.results))


def _alike(r: Result) -> Hashable:
    """What undiagnosed failures have in common: where they are told of, what was said, or check and tensor."""
    if r.expected_outcome and r.url:
        return r.url
    return r.reason if r.outcome == "ERROR" else (r.method, r.check, r.tensor)


def _of(results: Sequence[Result], cause: str = "") -> Finding:
    order = list(GROUP_OF)
    key: Callable[[Result], tuple] = lambda r: (r.variant != "usual", order.index(r.check), r.id)
    return Finding(tuple(sorted(results, key=key)), cause)


def folded(ids: Iterable[str]) -> list[str]:
    """Many ids in few words, as a shell reads them.

    >>> folded(["one.load.missing", "one.load.unexpected", "other.load.missing", "other.load.unexpected", "one.grad.usual"])
    ['{one,other}.load.{missing,unexpected}', 'one.grad.usual']
    """
    variants: dict[tuple[str, str], list[str]] = {}
    for i in ids:
        method, check, variant = i.split(".", 2)
        variants.setdefault((method, check), []).append(variant)
    methods: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (method, check), some in variants.items():
        methods.setdefault((check, tuple(some)), []).append(method)
    return [f"{_braced(of)}.{check}.{_braced(some)}" for (check, some), of in methods.items()]


def _braced(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else "{" + ",".join(words) + "}"
