"""The one error a user's mistake raises, and the near misses that go with it."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable
from itertools import islice

from minipeft.limits import MESSAGE
from minipeft.plain import plain

FAR, MANY = 200, 10_000  # a word of more characters is no slip; among more options looking takes seconds


class Bad(ValueError):
    """A mistake in what was given: one line naming the thing, what was expected and what was found.

    What came from a file is made harmless in it, and what is too long loses its end.
    """

    def __init__(self, line: object = "") -> None:
        said = plain(line)
        super().__init__(said if len(said) <= MESSAGE else f"{said[: MESSAGE - 1]}…")


def near(word: str, options: Iterable[str], n: int = 3) -> str:
    """' (did you mean a, b?)' for the options closest to `word`, or '' if none is close.

    >>> near("alhpa", ["alpha", "alpha_min", "targets"]), near("rank", ["n", "r"])
    (' (did you mean alpha, alpha_min?)', ' (did you mean r?)')
    """
    if len(word) > FAR:
        return ""
    known = list(islice(options, MANY))
    small = {option.lower(): option for option in reversed(known)}
    close = [small[x] for x in difflib.get_close_matches(word.lower(), small, n=2 * n, cutoff=0.5)]
    close = sorted(
        close, key=lambda option: sorted(option.lower()) != sorted(word.lower())
    )  # the same letters come first
    close = close or [x for x in known if x and (word.startswith(x) or x.startswith(word))]
    return f" (did you mean {', '.join(close[:n])}?)" if close else ""


def meant(word: str, options: Iterable[str]) -> str | None:
    """The option that a word is, whatever its capitals, hyphens and underscores; None if it is none.

    >>> meant("All-Linear", ["linear", "all_linear"])
    'all_linear'
    """
    known = list(options)
    return word if word in known else next((x for x in known if _letters(x) == _letters(word)), None)


def _letters(word: str) -> str:
    return re.sub(r"[\W_]", "", word).lower()


class Unfit(Bad):
    """A method asked of a model it does not fit: its targets match nothing there, or it needs another kind of model."""


class Note(UserWarning):
    """Something that is no mistake and should be known: a line, told once."""


def note(line: str) -> None:
    """Tell a line once, as a warning: what a file asks for and is not honoured."""
    warnings.warn(line, Note, stacklevel=2)
