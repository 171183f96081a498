"""The array library: NumPy on the host or CuPy on a GPU, chosen once per process.

Every file says `from minipeft.engine.backend import xp` and writes `xp.exp(...)`. `use("cupy")`, or the environment
variable MINIPEFT_BACKEND, decides what `xp` stands for. Random numbers are always drawn on the host, so that initial
values are the same bits on both.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Any

from minipeft.errors import Bad, near

NAMES = ("numpy", "cupy")


class _Backend:
    """Forwards attribute access to the chosen library and remembers what it found."""

    def __init__(self) -> None:
        self._name = ""

    def _choose(self, name: str) -> None:
        if name not in NAMES:
            raise Bad(f"backend {name!r} is unknown; expected one of {', '.join(NAMES)}{near(name, NAMES)}")
        try:
            module = importlib.import_module(name)
            if name == "cupy" and module.cuda.runtime.getDeviceCount() == 0:
                raise RuntimeError("no CUDA device")
        except Exception as why:  # whatever the library or its driver raises, at whatever length
            raise Bad(
                f"backend {name!r} cannot be used here: {' '.join(str(why).split())}; it needs an NVIDIA GPU, its driver and "
                f"`pip install cupy-cuda13x` (or cupy-cuda12x); the default backend is numpy"
            ) from None
        self.__dict__.clear()
        self._name, self._module = name, module

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if "_module" not in self.__dict__:
            self._choose(os.environ.get("MINIPEFT_BACKEND", "numpy"))
        found = getattr(self._module, attribute)
        self.__dict__[attribute] = found
        return found


xp: Any = _Backend()


def use(name: str) -> None:
    """Choose the array library for this process. Raises `Bad` if it is unknown or cannot run here."""
    xp._choose(name)


def name() -> str:
    """The chosen library: 'numpy' or 'cupy'."""
    xp.ndarray  # noqa: B018  (the first access chooses)
    return xp._name


def erf(x: Any) -> Any:
    """The error function of every element, from SciPy or cupyx.scipy, in the dtype of x."""
    special = "scipy.special" if name() == "numpy" else "cupyx.scipy.special"
    return importlib.import_module(special).erf(x)


def to_host(x: Any) -> Any:
    """x as a NumPy array (x itself if it is one)."""
    return x.get() if hasattr(x, "get") and not isinstance(x, dict) else x


def to_device(x: Any, dtype: Any = None) -> Any:
    """x as an array of the chosen library, in `dtype` if given."""
    return xp.asarray(x, dtype=dtype)


def read_only(x: Any) -> Any:
    """x, made unwritable where the library knows such a flag (NumPy does; CuPy arrays are guarded by digests)."""
    if name() == "numpy":
        x = x.view()
        x.flags.writeable = False
    return x


def keep_freed_memory() -> None:
    """Ask the C library to keep freed blocks for the next step instead of returning them to the system.

    A training step frees and allocates the same sizes again and again; giving each block back costs a page fault for
    every 4 KiB of the next one. Does nothing where the C library has no `mallopt` (other than glibc).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 32 << 20)  # the largest that glibc takes
    mallopt(m_trim_threshold, 1 << 30)
