"""What several results come to: one word, how many of what was asked are right, what was not answered, and a mark for each group."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minipeft.conformance.groups import GROUP_OF, GROUPS, group_of
from minipeft.conformance.results import Result
from minipeft.errors import Bad, near

MARKS = {  # of several results, by their state; no two differ in colour alone
    "PASS": ("✓", "right"),
    "READING": ("≈", "right in its reading"),
    "PART": ("◐", "right as far as answered"),
    "FAIL": ("✗", "wrong"),
    "ERROR": ("!", "error"),
    "SKIP": ("○", "not answered"),
    "N/A": ("·", "nothing to ask"),
}
STANDS_BY = {"unmerge": "merge", "unmerge_bfloat16": "merge_bfloat16"}  # whose right answer is what was given


def implementations(results: Iterable[Result]) -> list[str]:
    """Their names, in order."""
    return list(dict.fromkeys(r.implementation for r in results))


def grouped(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """{(method, implementation): results}, sorted by method."""
    out: dict[tuple[str, str], list[Result]] = {}
    for r in sorted(results, key=lambda r: r.method):
        out.setdefault((r.method, r.implementation), []).append(r)
    return out


def state(results: Iterable[Result]) -> str:
    """One word for several results, the worst first; PART where what was answered is right and some was not."""
    outcomes = {r.outcome for r in results}
    for word in ("FAIL", "ERROR"):
        if word in outcomes:
            return word
    if "SKIP" in outcomes:
        return "PART" if outcomes & {"PASS", "READING"} else "SKIP"
    return next((word for word in ("READING", "PASS") if word in outcomes), "N/A")


def states(results: Iterable[Result]) -> dict[str, str]:
    """{group: its state}, of every group."""
    of: dict[str, list[Result]] = {group: [] for group in GROUPS}
    for r in results:
        of[group_of(r.check)].append(r)
    return {group: state(some) for group, some in of.items()}


def marks(results: Iterable[Result]) -> str:
    """A mark for every group, in the order of `LETTERS`."""
    return "".join(MARKS[word][0] for word in states(results).values())


@dataclass(frozen=True)
class Verdict:
    """What the results of one method in one implementation come to. `asked` are the cases that concern it: those of readings
    that it has not do not. The rest are the checks of what is not right, by outcome."""

    word: str
    right: int
    asked: int
    checks: dict[str, tuple[str, ...]]
    counts: dict[str, int]
    there: bool = True  # False: the implementation does not say that it has the method, or no case concerns it

    @property
    def title(self) -> str:
        """As `PASS 13 of 37`."""
        return f"{'PASS (reading)' if self.word == 'READING' else self.word} {self.right} of {self.asked}"

    def missing(self, named: bool = True) -> str:
        """As `24 not answered: load, train, unmerge`; without the names of checks unless `named`; '' where all is right."""
        said = []
        for outcome, words in (("FAIL", "wrong"), ("ERROR", "errors"), ("SKIP", "not answered")):
            if n := self.counts[outcome]:
                words = "error" if (outcome, n) == ("ERROR", 1) else words
                said.append(f"{n} {words}" + (f": {', '.join(self.checks[outcome])}" if named else ""))
        return "; ".join(said)

    def __str__(self) -> str:
        return f"{self.title} ({said})" if (said := self.missing()) else self.title

    @property
    def brief(self) -> str:
        """The same without the names of checks."""
        return f"{self.title} ({said})" if (said := self.missing(named=False)) else self.title


def verdict(results: Sequence[Result]) -> Verdict:
    """The verdict on one method's results."""
    outcomes = [r.outcome for r in results]
    asked = [r for r in results if r.outcome != "N/A"]
    word = next((w for w in ("FAIL", "ERROR", "READING", "PASS") if w in outcomes), "SKIP")
    odd = ("FAIL", "ERROR", "SKIP")
    checks = {o: tuple(dict.fromkeys(r.check for r in results if r.outcome == o)) for o in odd}
    counts = {o: outcomes.count(o) for o in odd}
    right = sum(o in ("PASS", "READING") for o in outcomes)
    return Verdict(word, right, len(asked), checks, counts, not all(r.absent for r in asked))


# --- what counts, and what must be there ------------------------------------------------------------------------------


def standing(results: Sequence[Result]) -> list[Result]:
    """The results, those passes taken back that show nothing: whoever gives back what it was given is right about unmerging, and
    whoever refuses every file about those that do not fit. They stand by an answer to merging, and to a file that fits."""
    found = {(r.implementation, r.id): r.outcome for r in results}
    out = []
    for r in results:
        if r.outcome in ("PASS", "READING"):
            by = f"{r.method}.{STANDS_BY.get(r.check)}.{r.variant}"
            if r.check == "load" and r.ratio is None:  # it was refused
                by = f"{r.method}.load.plain"
            if found.get((r.implementation, by)) in ("SKIP", "ERROR"):
                r = dataclasses.replace(r, outcome="SKIP", reason=f"it shows nothing: {by} is not answered")
        out.append(r)
    return out


def required(words: str, checks: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """{a word as it was written: checks}, of `forward,grad,files`: names of checks or of groups, and of both the check's.

    Raises `Bad` for a word that is neither, and for one that names nothing among the `checks` of a run.
    """
    there, out = set(checks), {}
    known = [*GROUP_OF, *(g for g in GROUPS if g not in GROUP_OF)]
    for word in filter(None, (w.strip() for w in words.split(","))):
        if word not in known:
            raise Bad(f"--require {word}: expected checks or groups, of {', '.join(known)}{near(word, known)}")
        meant = (word,) if word in GROUP_OF else GROUPS[word]
        if not there & set(meant):
            raise Bad(f"--require {word}: expected a check that is asked; none of the chosen cases is of it")
        out[word] = meant
    if not out:
        raise Bad("--require: expected checks or groups, found none")
    return out


def lacking(
    results: Sequence[Result], wanted: dict[str, tuple[str, ...]], named: Iterable[str] = ()
) -> dict[str, list[str]]:
    """{implementation: a line for every method with required cases that are not answered: which checks, and how many}.

    A method that an implementation does not say it has is passed over, unless it is `named`. Cases of readings that it has not need no
    answer, unless no others of the check are there.
    """
    said: dict[str, list[str]] = {}
    asked = set(named)
    every = [check for meant in wanted.values() for check in meant]
    for (method, name), mine in grouped(results).items():
        if all(r.absent for r in mine) and method not in asked:
            continue
        open_: Counter[str] = Counter()
        for check in dict.fromkeys(every):
            of_check = [r for r in mine if r.check == check]
            judged = any(r.outcome not in ("SKIP", "N/A") for r in of_check)
            open_[check] = sum(r.outcome == "SKIP" or (r.outcome == "N/A" and not judged) for r in of_check)
        if told := [f"{check} ({n})" for check, n in open_.items() if n]:
            said.setdefault(name, []).append(f"{name} {method}: required and not answered: {', '.join(told)}")
    return said
