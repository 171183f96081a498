"""What is recorded of a method: its settings as they are tried, each option changed alone, and what its mutants need beside.

These stand in the file of its mutants, by their variants' names:

    CASES = {"bound": More(dict(coft=True, eps=0.01)), "short": More(arrays=lambda a: a | {"A": 1e-5 * a["A"]})}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from minipeft.conformance.mutants import said
from minipeft.conformance.places import ARCH, Arrays
from minipeft.errors import Bad
from minipeft.method import Method, samples
from minipeft.model.arch import Arch
from minipeft.settings import choices, kind, tried


@dataclass(frozen=True)
class More:
    """Cases of a method beside the usual: settings changed together, and other arrays."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    arrays: Callable[[Arrays], Arrays] = dict
    sizes: str = ""  # of a linear of these sizes, a word of `places.SIZED`
    training: bool = False  # in training, with a mask for its dropout
    table: bool = False  # of a token table: its outputs and gradients
    tied: bool = False  # of one that is the head too
    place: str = ""  # of another place that is a linear
    steps: int = 0  # so many steps of its own training, and nothing else


def more(cls: type[Method]) -> Mapping[str, More]:
    """Those that the file of a method's mutants asks for."""
    return said(cls.name, "CASES")


def usual(cls: type[Method], arch: Arch = ARCH) -> Method:
    """The method with settings under which nothing is 0 or 1 or equal to something else."""
    return tried(cls, arch)


def options(cls: type[Method]) -> dict[str, tuple[Any, ...]]:
    """What each field may be else: both values of a flag, the words of a choice, and what it says `also`."""
    words = {f.name: f.metadata.get("also") for f in dataclasses.fields(cls)}
    words |= {name: c.options for name, c in choices(cls).items() if c.varied}
    found = {f.name: (False, True) if kind(f) == "bool" else words[f.name] for f in dataclasses.fields(cls)}
    return {k: v for k, v in found.items() if v}


def readings(cls: type[Method]) -> tuple[str, ...]:
    """Fields that are a reading: where paper and practice split."""
    return tuple(name for name, c in choices(cls).items() if c.reading)


def variants(cls: type[Method]) -> Iterator[tuple[str, Method]]:
    """The method as usual, and with each option changed alone."""
    method = usual(cls)
    yield "usual", method
    for name, words in options(cls).items():
        for choice in words:
            if choice == getattr(method, name):
                continue
            try:
                made = dataclasses.replace(method, **{name: choice})
            except Bad:
                continue  # an option that does not go with the others
            if not samples(made, train=False):  # what is drawn in every pass is no number to record
                told = f"{choice:.0e}" if isinstance(choice, float) else choice  # a dot would part a case's name
                yield f"{name}={told}", made
