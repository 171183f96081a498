"""Names by patterns: globs, and regular expressions that somebody else wrote, matched within a time.

A few characters can keep Python's `re` busy for years: (a+)+$ on thirty letters. How many ways there are through a pattern is
bounded by its parts; where they are few, it is matched at once, and else in a process of its own, which is ended in time.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from minipeft.errors import Bad
from minipeft.limits import PATTERN_LENGTH, PATTERN_SECONDS
from minipeft.shown import shortly

WAYS = 5_000_000  # through all patterns and names together: a second or so
LONGEST = 256  # characters that a repeat is taken to run over; the longest name of a module has some 150
ENDLESS = float("inf")
CHILD = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ImportError, ValueError, OSError):
    pass
patterns, names, form = json.load(sys.stdin)
out = []
for pattern in patterns:
    try:
        match = getattr(re.compile(pattern), form)
        out.append({n: (m.group(1) if m.re.groups else None) for n in names if (m := match(n))})
    except (re.error, OverflowError, RecursionError, MemoryError) as why:
        out.append(str(why) or type(why).__name__)
json.dump(out, sys.stdout)
"""  # what `_here` does


def globbed(names: Iterable[str], pattern: str) -> set[str]:
    """The names that a glob means: those it matches whole; if there is none, those whose end after a dot it matches."""
    names = list(names)
    return {n for n in names if fnmatchcase(n, pattern)} or {n for n in names if fnmatchcase(n, f"*.{pattern}")}


def matching(pattern: str, names: Iterable[str], what: str, shown: str = "") -> set[str]:
    """The names that a regular expression matches whole, as `re.fullmatch` says.

    Raises `Bad`, in one line that begins with `what` and shows the pattern as it was written, for what is no regular
    expression, and for one that takes more than `PATTERN_SECONDS`.
    """
    return set(matches([pattern], names, what, shown=shown)[0])


def matches(
    patterns: Sequence[str], names: Iterable[str], what: str, form: str = "fullmatch", shown: str = ""
) -> list[Mapping[str, str | None]]:
    """For each pattern the names that it matches ("fullmatch", "match" or "search"), and of each its first group, None without any.

    All together take no longer than `PATTERN_SECONDS`. Raises `Bad` as `matching` does.
    """
    names = tuple(names)
    for pattern in patterns:
        refuse_long(pattern, what)
    with warnings.catch_warnings():  # of what a later Python may read otherwise
        warnings.simplefilter("ignore")
        longest = max(map(len, names), default=0)
        tame = not names or (longest <= LONGEST and sum(map(_ways, patterns)) * len(names) <= WAYS)
        found = (
            _here(patterns, names, form)
            if tame
            else _apart(patterns, names, form, f"{what} {shortly(shown or patterns[0])}")
        )
    for pattern, one in zip(patterns, found, strict=True):
        if isinstance(one, str):
            raise Bad(f"{what} {shortly(shown or pattern)} is no regular expression: {one}")
    return found


def refuse_long(pattern: str, what: str) -> None:
    """Raises `Bad` for a pattern of more characters than an honest one has."""
    if len(pattern) > PATTERN_LENGTH:
        raise Bad(
            f"{what}: expected a pattern of at most {PATTERN_LENGTH:,} characters, found {len(pattern):,}: {shortly(pattern)}"
        )


def refuse_broken(pattern: str, what: str) -> None:
    """Raises `Bad` for what is no regular expression; nothing is matched."""
    matches([pattern], (), what)


ENDING = r"(.*\.)?({})$"  # what ends a name after a dot, or is all of it


def is_plain(pattern: str) -> bool:
    """Whether it has letters, digits and dots alone. A dot stands for any character all the same."""
    return re.fullmatch(r"[\w.]+", pattern) is not None


def first_ending(patterns: Sequence[str], names: Iterable[str], what: str) -> dict[str, str]:
    """{name: the first of the patterns that ends it, after a dot, or is all of it}. Raises `Bad` as `matching` does."""
    names = tuple(names)
    intricate = [p for p in patterns if not is_plain(p)]
    found = matches([ENDING.replace("{}", p) for p in intricate], names, what, "match")
    own = dict(zip(intricate, found, strict=True))
    out: dict[str, str] = {}
    for pattern in patterns:
        for name in names:
            if name not in out and (name in own[pattern] if pattern in own else _ends(name, pattern)):
                out[name] = pattern
    return out


def _ends(name: str, plain: str) -> bool:
    at = len(name) - len(plain)
    starts = at == 0 or (at > 0 and name[at - 1] == ".")
    return starts and all(p in (".", n) for n, p in zip(name[at:], plain, strict=True))


def _here(patterns: Sequence[str], names: Sequence[str], form: str) -> list[Any]:
    out: list[Any] = []
    for pattern in patterns:
        try:
            match = getattr(re.compile(pattern), form)
        except (re.error, OverflowError, RecursionError) as why:
            out.append(str(why))
        else:
            out.append({n: (m.group(1) if m.re.groups else None) for n in names if (m := match(n))})
    return out


def _apart(patterns: Sequence[str], names: Sequence[str], form: str, first: str) -> list[Any]:
    about = first + (f" and {len(patterns) - 1} more" if len(patterns) > 1 else "")
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-S", "-c", CHILD],
            input=json.dumps([patterns, names, form]).encode(),
            capture_output=True,
            timeout=PATTERN_SECONDS,
            check=False,
        )
        return json.loads(ended.stdout)
    except subprocess.TimeoutExpired:
        raise Bad(
            f"{about}: expected a pattern that is matched in {PATTERN_SECONDS:g} s, this takes longer: it repeats what repeats"
        ) from None
    except (OSError, ValueError):
        raise Bad(f"{about}: this pattern cannot be matched") from None


# --- how many ways there are through a pattern ------------------------------------------------------------------------


def _ways(pattern: str) -> float:
    """At most so many ways; without end where that cannot be told. What is no pattern has one: it is not matched."""
    try:
        from re import _parser  # type: ignore[attr-defined]  # of CPython
    except ImportError:
        return ENDLESS
    try:
        return _through(_parser.parse(pattern))
    except (re.error, OverflowError):
        return 1
    except RecursionError:
        return ENDLESS


def _through(tree: Any) -> float:
    product = 1.0
    for op, given in tree:
        product *= _of(str(op), given)
    return product


def _of(op: str, given: Any) -> float:
    if op in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "GROUPREF", "CATEGORY", "FAILURE"):
        return 1
    if op == "SUBPATTERN":
        return _through(given[-1])
    if op == "BRANCH":
        return sum(map(_through, given[1]))
    if op in ("ASSERT", "ASSERT_NOT"):
        return _through(given[1])
    if op in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        least, most, inner = given
        most = min(int(most), max(LONGEST, int(least)))
        ways = _through(inner)
        if ways == 1 and _can_be_nothing(inner):
            return ENDLESS
        return (
            most - least + 1
            if ways == 1
            else ENDLESS
            if most * ways > 1000
            else sum(ways**n for n in range(least, most + 1))
        )
    return ENDLESS


def _can_be_nothing(tree: Any) -> bool:
    return tree.getwidth()[0] == 0
