"""Whether there are loops that Numba compiles, and when they are taken: `pip install numba`; MINIPEFT_NUMBA=0 does without.

What they compute is said in `kernels.py`, which is read when the first of them is called.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from importlib.util import find_spec
from typing import Any

LEAST = 1 << 14  # numbers from which on an op is worth it


@cache
def installed() -> bool:
    """Whether Numba is, and is not to be done without."""
    return os.environ.get("MINIPEFT_NUMBA") != "0" and find_spec("numba") is not None


@cache
def kernels() -> Any:
    """The compiled loops."""
    return importlib.import_module("minipeft.engine.fast.kernels")


def single(*arrays: Any, **constants: Any) -> bool:
    """Whether they are taken for these: of float32 all of them, and enough of it."""
    if not installed():
        return False
    plain = [getattr(x, "value", x) for x in arrays]
    return (
        all(x.dtype.char == "f" and x.flags.aligned for x in plain)
        and min(x.size for x in plain) > 0
        and max(x.size for x in plain) >= LEAST
    )
