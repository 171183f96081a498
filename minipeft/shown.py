"""What an object says of itself at the prompt: a line or a few, whatever it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

LONG = 60  # letters of a value


def shortly(x: Any) -> str:
    """What was found, on one line and not longer than that."""
    text = " ".join(repr(x).split())
    return text if len(text) <= LONG else text[: LONG - 3] + "…"


def brief(x: Any) -> str:
    """A value: of an array its type and shape, of what holds many things how many, of a function its name.

    >>> import numpy as np
    >>> brief(np.ones((2, 3))), brief(dict.fromkeys(range(100))), brief((1, 2))
    ('float64 (2, 3)', '100 entries', '(1, 2)')
    """
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype} {tuple(x.shape)}"
    if isinstance(x, Mapping | list | tuple | set | frozenset) and (
        len(x) > 20 or any(hasattr(v, "shape") for v in (x.values() if isinstance(x, Mapping) else x))
    ):
        return f"{len(x):,} {'entry' if len(x) == 1 else 'entries'}"
    return getattr(x, "__name__", "") or shortly(x)


def described(made: Any) -> str:
    """A dataclass: its name, and of its fields those that are not as usual."""
    given = ((f, getattr(made, f.name)) for f in dataclasses.fields(made) if f.repr)
    said = ", ".join(f"{f.name}={brief(x)}" for f, x in given if not _usual(f, x))
    return f"{type(made).__name__}({said})"


def _usual(f: Any, x: Any) -> bool:
    if f.default_factory is not dataclasses.MISSING:
        usual = f.default_factory()
    else:
        usual = f.default
    return x is usual or (type(x) is type(usual) and not hasattr(x, "shape") and x == usual)
