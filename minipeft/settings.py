"""What a setting may be, said where it stands, and one check of all settings when an instance is made.

    @dataclass(frozen=True)
    class Mine(Method):
        r: int = count(8)
        dropout: float = within("[0, 1)", 0.0)
        start: str = choice("normal", "zero")

A setting has the type that its annotation says (a number of NumPy's becomes Python's; an int is a float too, a bool is no
int), is neither NaN nor infinite, and lies in its range. What else must hold, between two settings perhaps, a class says in
`__post_init__` after `super().__post_init__()`.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.errors import Bad, near

MOST = 1 << 16  # of what an array has one row for: more is a slip, and is refused before it takes memory
LARGEST, LEAST = 1e9, 1e-9  # of a factor: what lies beyond overflows in float32


@dataclass(frozen=True)
class Range:
    """Numbers a setting may be: `says` completes "r must …"."""

    fits: Callable[[Any], bool]
    says: str


@dataclass(frozen=True)
class Choice:
    """Words a setting may be. A `reading` is where paper and practice split; what is `varied` has recorded cases."""

    options: tuple[str, ...]
    reading: bool = False
    varied: bool = True

    def fits(self, word: Any) -> bool:
        return word in self.options

    @property
    def says(self) -> str:
        quoted = [repr(o) for o in self.options]
        return f"be {' or '.join(quoted)}" if len(quoted) < 3 else f"be one of {', '.join(self.options)}"


def _declared(default: Any, *rules: Any) -> Any:
    return dataclasses.field(default=default, metadata={"rules": rules})


def at_least(low: float, default: Any, most: float = LARGEST) -> Any:
    """A number from `low` on."""
    return _declared(
        default,
        Range(lambda x: x >= low, f"be at least {low:g}"),
        Range(lambda x: x <= most, f"be at most {most:,.0f}"),
    )


def count(default: Any, least: int = 1, most: int = MOST) -> Any:
    """How many of something there are: the length of an array's axis."""
    return at_least(least, default, most)


def positive(default: Any) -> Any:
    """A factor above 0."""
    return _declared(
        default,
        Range(lambda x: x > 0, "be positive"),
        Range(lambda x: LEAST <= x <= LARGEST, f"lie between {LEAST:g} and {LARGEST:g}"),
    )


def within(interval: str, default: float) -> Any:
    """A number in an interval, as it is written: "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))

    def fits(x: Any) -> bool:
        above = x >= low if interval[0] == "[" else x > low
        return above and (x <= high if interval[-1] == "]" else x < high)

    return _declared(default, Range(fits, f"lie in {interval}"))


def choice(*options: str, default: str | None = None, reading: bool = False, varied: bool = True) -> Any:
    """One of these words, the first if no other is the default."""
    return _declared(options[0] if default is None else default, Choice(options, reading, varied))


def choices(cls: Any) -> dict[str, Choice]:
    """The settings of a class that are a choice, by name, in order."""
    rules = {f.name: f.metadata.get("rules", ()) for f in dataclasses.fields(cls)}
    return {name: rule for name, found in rules.items() for rule in found if isinstance(rule, Choice)}


# --- types ------------------------------------------------------------------------------------------------------------


def _number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool) and bool(abs(x) <= LARGEST)  # type: ignore[operator]


def _several(x: Any) -> bool:
    return isinstance(x, (tuple, list))


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda x: isinstance(x, int) and not isinstance(x, bool), "an integer"),
    "float": (_number, f"a number of at most {LARGEST:g}"),
    "bool": (lambda x: isinstance(x, bool), "True or False"),
    "str": (lambda x: isinstance(x, str), "text"),
    "None": (lambda x: x is None, "None"),
    "tuple[int, ...]": (lambda x: _several(x) and all(map(KINDS["int"][0], x)), "integers"),
}


def _plain(x: Any) -> Any:
    """Numbers of NumPy's, which widen float32, as Python's; lists as tuples, which can be hashed."""
    if isinstance(x, (np.generic, np.ndarray)):
        x = x.tolist()
    return tuple(map(_plain, x)) if isinstance(x, (list, tuple, range)) else x


def check(made: Any, name: str) -> None:
    """Hold the settings of a new instance against their declarations. Raises `Bad` for the first that does not fit."""
    for f in dataclasses.fields(made):
        x = _plain(getattr(made, f.name))
        object.__setattr__(made, f.name, x)
        annotated = str(f.type if isinstance(f.type, str) or hasattr(f.type, "__args__") else f.type.__name__)
        words = [word.strip() for word in annotated.split("|")]
        kinds = [KINDS[k] for k in words] if all(k in KINDS for k in words) else []
        if annotated.startswith("tuple[") and not kinds:
            kinds = [(_several, "a tuple")]
        if kinds and not any(fits(x) for fits, _ in kinds):
            expected = " or ".join(says for _, says in kinds)
            raise Bad(f"{name}: {f.name} must be {expected}, found {shortly(x)}")
        for rule in f.metadata.get("rules", ()) if x is not None else ():
            if not rule.fits(x):
                hint = near(x, rule.options) if isinstance(rule, Choice) else ""
                raise Bad(f"{name}: {f.name} must {rule.says}, found {shortly(x)}{hint}")


def shortly(x: Any) -> str:
    """What was found, on one line and not longer than that."""
    text = " ".join(repr(x).split())
    return text if len(text) <= 60 else text[:57] + "…"
