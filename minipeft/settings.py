"""What a setting may be, said where it stands, and one check of all settings when an instance is made.

    @dataclass(frozen=True)
    class Mine(Method):
        r: int = count(8)
        dropout: float = within("[0, 1)", 0.0)
        start: str = choice("normal", "zero")

A setting has the type that its annotation says (a number of NumPy's becomes Python's; an int is a float too, a bool is no
int), is neither NaN nor infinite, and lies in its range. What else must hold, between two settings perhaps, a class
says by `minipeft.arrays.requires`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minipeft.errors import Bad, near
from minipeft.expressions import evaluate
from minipeft.shown import described, shortly

MOST = 1 << 16  # of what an array has one row for: more is a slip, and is refused before it takes memory
LARGEST, LEAST = 1e9, 1e-9  # of a factor: what lies beyond overflows in float32


@dataclass(frozen=True)
class Range:
    """Numbers a setting may be: `says` completes "r must …"."""

    fits: Callable[[Any], bool] = field(repr=False)
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


@dataclass(frozen=True)
class Bound:
    """What must hold between this setting and others: an expression over them."""

    condition: str
    says: str

    def fits_in(self, made: Any, x: Any) -> bool:
        return bool(evaluate(self.condition, _values(made) | {"it": x}))

    def told(self, made: Any) -> str:
        return re.sub(r"\{([^}]*)\}", lambda m: f"{m[1]} = {evaluate(m[1], _values(made))}", self.says)


def _values(made: Any) -> dict[str, Any]:
    return {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}


def _declared(default: Any, *rules: Any, small: Any = None, tried: Any = None, also: tuple[Any, ...] = ()) -> Any:
    """A field: its rules, what suits a `small` model (a value, or a function of its architecture), what cases are `tried` with.

    `also` are values under which something else is computed: each is tried too.
    """
    return dataclasses.field(default=default, metadata=dict(rules=rules, small=small, tried=tried, also=also))


def _most(most: float | str) -> Any:
    if isinstance(most, str):
        return Bound(f"it <= {most}", f"be at most {{{most}}}")
    return Range(lambda x: x <= most, f"be at most {most:,.0f}")


def free(default: Any, **about: Any) -> Any:
    """A value with no range but its type's."""
    return _declared(default, **about)


def at_least(low: float, default: Any, most: float | str = LARGEST, **about: Any) -> Any:
    """A number from `low` on, up to `most`, which may be an expression over other settings."""
    return _declared(default, Range(lambda x: x >= low, f"be at least {low:g}"), _most(most), **about)


def such_that(fits: Callable[[Any], bool], says: str, default: Any, **about: Any) -> Any:
    """A value that fits; `says` completes "r must …"."""
    return _declared(default, Range(fits, says), **about)


def parts(cls: type, default: Any, *, fits: Callable[[Any], bool] | None = None, says: str = "", **about: Any) -> Any:
    """Methods of a class, one or more, that a method is built over."""
    rule = Range(
        lambda xs: bool(xs) and all(type(x) is cls and (fits is None or fits(x)) for x in xs),
        f"be one or more plain {cls.__name__}{says}",
    )
    made = _declared(default, rule, **about)
    made.metadata = {**made.metadata, "parts": cls}
    return made


def part_of(cls: Any) -> tuple[str, Any] | None:
    """The setting of a class that holds methods, and their class; None if it is built over none."""
    return next(((f.name, p) for f in dataclasses.fields(cls) if (p := f.metadata.get("parts"))), None)


def count(default: Any, least: int = 1, most: int | str = MOST, **about: Any) -> Any:
    """How many of something there are: the length of an array's axis."""
    return at_least(least, default, most, **about)


def positive(default: Any, **about: Any) -> Any:
    """A factor above 0."""
    return _declared(
        default,
        Range(lambda x: x > 0, "be positive"),
        Range(lambda x: LEAST <= x <= LARGEST, f"lie between {LEAST:g} and {LARGEST:g}"),
        **about,
    )


def within(interval: str, default: float | None, **about: Any) -> Any:
    """A number in an interval, as it is written: "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))

    def fits(x: Any) -> bool:
        above = x >= low if interval[0] == "[" else x > low
        return above and (x <= high if interval[-1] == "]" else x < high)

    return _declared(default, Range(fits, f"lie in {interval}"), **about)


def choice(*options: str, default: str | None = None, reading: bool = False, varied: bool = True, **about: Any) -> Any:
    """One of these words, the first if no other is the default."""
    return _declared(options[0] if default is None else default, Choice(options, reading, varied), **about)


def small(cls: Any, arch: Any) -> Any:
    """An instance whose sizes suit a small model of this architecture: what is compared and what the laws are tried on."""
    return cls(**_about(cls, "small", arch))


def tried(cls: Any, arch: Any) -> Any:
    """An instance for recorded cases, under which nothing is 0 or 1 or equal to something else."""
    return dataclasses.replace(small(cls, arch), **_about(cls, "tried", arch))


def _about(cls: Any, what: str, arch: Any) -> dict[str, Any]:
    given = {f.name: x for f in dataclasses.fields(cls) if (x := f.metadata.get(what)) is not None}
    return {name: x(arch) if callable(x) else x for name, x in given.items()}


def choices(cls: Any) -> dict[str, Choice]:
    """The settings of a class that are a choice, by name, in order."""
    rules = {f.name: f.metadata.get("rules", ()) for f in dataclasses.fields(cls)}
    return {name: rule for name, found in rules.items() for rule in found if isinstance(rule, Choice)}


def common_width(arch: Any) -> int:
    """The largest number that divides all widths of a model's attention: what suits blocks of a small one."""
    return math.gcd(arch.d, arch.heads * arch.dh, arch.kv * arch.dh)


# --- types ------------------------------------------------------------------------------------------------------------


def kind(f: Any) -> str:
    """The type of a setting as it is written: "int", "int | None"."""
    return str(f.type if isinstance(f.type, str) or hasattr(f.type, "__args__") else f.type.__name__)


def explained(f: Any) -> str:
    """What a setting may be, in words: its type, its range or choices."""
    words = [word.strip() for word in kind(f).split("|")]
    says = {k: "a number" if k == "float" else what for k, (_, what) in KINDS.items()}
    types = " or ".join(says[w] for w in words) if all(w in KINDS for w in words) else "a tuple"
    rules = f.metadata.get("rules", ())
    usual = f"at most {LARGEST:,.0f}", f"lie between {LEAST:g} and {LARGEST:g}"
    ranges = [getattr(r, "says", "").replace("{", "").replace("}", "") for r in rules]
    ranges = [w for w in ranges if w and not w.endswith(usual)]
    if any(isinstance(r, Choice) for r in rules):
        reading = " (a reading)" if any(getattr(r, "reading", False) for r in rules) else ""
        return f"{' or '.join(next(r.options for r in rules if isinstance(r, Choice)))}{reading}"
    return types + "".join(f", {w.removeprefix('be ').removeprefix('lie ')}" for w in ranges)


class Unknown(Bad, TypeError):
    """A setting that there is none of."""


class Settings:
    """A dataclass of settings: what it is given that is none is named in one line; it shows what is not as usual."""

    def __init_subclass__(cls, **how: Any) -> None:
        super().__init_subclass__(**how)
        cls.__repr__ = described  # type: ignore[assignment]  # before `dataclass` makes one

    def __new__(cls, *args: Any, **given: Any) -> Any:
        known = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
        for word in given:
            if word not in known:
                raise Unknown(f"{cls.__name__} has no setting {word!r}{near(word, known)}; it has {', '.join(known)}")
        return super().__new__(cls)


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
        annotated = kind(f)
        words = [word.strip() for word in annotated.split("|")]
        kinds = [KINDS[k] for k in words] if all(k in KINDS for k in words) else []
        if annotated.startswith("tuple[") and not kinds:
            kinds = [(_several, "a tuple")]
        if kinds and not any(fits(x) for fits, _ in kinds):
            expected = " or ".join(says for _, says in kinds)
            raise Bad(f"{name}: {f.name} must be {expected}, found {shortly(x)}")
        for rule in f.metadata.get("rules", ()) if x is not None else ():
            if isinstance(rule, Bound):
                continue
            if not rule.fits(x):
                hint = near(x, rule.options) if isinstance(rule, Choice) else ""
                raise Bad(f"{name}: {f.name} must {rule.says}, found {shortly(x)}{hint}")
    for f in dataclasses.fields(made):
        for rule in f.metadata.get("rules", ()) if (x := getattr(made, f.name)) is not None else ():
            if isinstance(rule, Bound) and not rule.fits_in(made, x):
                raise Bad(f"{name}: {f.name} must {rule.told(made)}, found {shortly(x)}")
