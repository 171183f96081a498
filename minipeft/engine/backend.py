"""The array library: NumPy on the host or CuPy on a GPU, chosen once per process, before any array is made.

Every file says `from minipeft.engine.backend import xp` and writes `xp.exp(...)`. `use("cupy")`, or the environment
variable MINIPEFT_BACKEND, decides what `xp` stands for. Random numbers are always drawn on the host, so that initial values
are the same bits on both.

Arrays cross between host and device in `to_device`, `to_host` and `once` alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

from minipeft.errors import Bad, near

NAMES = ["numpy", "cupy", *os.environ.get("MINIPEFT_STAND_IN", "").split()]  # of modules
_listeners: list[Callable[[str, bool], None]] = []


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
                f"backend {name!r} cannot be used here: {_line(why)}; it needs an NVIDIA GPU, its driver and "
                f'`pip install "cupy-cuda13x[ctk]"` (or cupy-cuda12x, as `nvidia-smi` says); the default backend is numpy'
            ) from None
        self.__dict__.clear()
        self._name, self._module = name, module
        for tell in _listeners:
            tell(name, _fast)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if "_module" not in self.__dict__:
            self._choose(os.environ.get("MINIPEFT_BACKEND", "numpy"))
        found = getattr(self._module, attribute)
        self.__dict__[attribute] = found
        return found


xp: Any = _Backend()
_fast = os.environ.get("MINIPEFT_FAST", "1") != "0"


def use(name: str | None = None, *, fast: bool | None = None) -> None:
    """Choose the array library for this process and those it starts, before any array is made.

    With `fast=False`, or MINIPEFT_FAST=0, every op is computed as its text says; see `minipeft.engine.fast`.
    Raises `Bad` if the library is unknown or cannot run here.
    """
    global _fast
    if fast is not None:
        _fast, os.environ["MINIPEFT_FAST"] = fast, str(int(fast))
    if name is None:
        xp.ndarray  # noqa: B018  (the first access chooses)
        name = xp._name
    xp._choose(name)
    os.environ["MINIPEFT_BACKEND"] = name


def name() -> str:
    """The chosen library, 'numpy' or 'cupy'."""
    xp.ndarray  # noqa: B018  (the first access chooses)
    return xp._name


def add(name: str) -> None:
    """Let a module be chosen that is neither of the two, here and in processes started from here: a stand-in for a device."""
    NAMES.append(name)
    os.environ["MINIPEFT_STAND_IN"] = name


def when_chosen(tell: Callable[[str, bool], None]) -> None:
    """Have `tell(name, fast)` called whenever a library is chosen."""
    _listeners.append(tell)


def erf(x: Any) -> Any:
    """The error function of every element, from SciPy or cupyx.scipy, in the dtype of x."""
    special = {"numpy": "scipy.special", "cupy": "cupyx.scipy.special"}.get(name(), name())
    return importlib.import_module(special).erf(x)


def solve(M: Any, y: Any) -> Any:
    """M⁻¹ y for stacks of matrices M (..., n, n) and y (..., n, k), broadcast; also where the library's own takes neither that
    nor an empty y."""
    shape = xp.broadcast_shapes(M.shape[:-2], y.shape[:-2])
    M, y = (xp.broadcast_to(a, (*shape, *a.shape[-2:])) for a in (M, y))
    return xp.linalg.solve(M, y) if y.size else xp.zeros(y.shape, y.dtype)


def lowest(dtype: Any) -> float:
    """The lowest number of a dtype. Half of it, added to a score, hides a key from `attention`."""
    return float(xp.finfo(dtype).min)


def refuse(wrong: Any, message: Callable[[], str]) -> None:
    """Raise ValueError if any number of `wrong` is true. On the host alone: a device would have to be waited for."""
    if name() == "numpy" and wrong.any():
        raise ValueError(message())


# --- host and device ------------------------------------------------------------------------------------------------


def to_host(x: Any) -> Any:
    """x as a NumPy array (x itself if it is one). Waits for the device."""
    return x.get() if hasattr(x, "get") and not isinstance(x, dict) else x


def to_device(x: Any, dtype: Any = None) -> Any:
    """x as an array of the chosen library, in `dtype` if given. Raises `Bad` for an array of another device."""
    if library(x) not in ("numpy", name()):
        refuse_others({"an array": x})
    return xp.asarray(x, dtype=dtype)


def once(f: Callable) -> Callable:
    """Constants of the device, of a function that gives them on the host: moved when first asked for, and kept there."""
    kept: dict[tuple, Any] = {}

    @wraps(f)
    def call(*args: Any) -> Any:
        key = (name(), *args)
        if key not in kept:
            found = f(*args)
            with _lasting():
                kept[key] = tuple(map(_constant, found)) if isinstance(found, tuple) else _constant(found)
        return kept[key]

    return call


def _constant(x: Any) -> Any:
    return read_only(to_device(x))


def _lasting() -> Any:
    """A context whose arrays do not lie in the memory of a graph that is being recorded, which its replays write over."""
    if name() != "cupy":
        return contextlib.nullcontext()
    return xp.cuda.using_allocator(xp.get_default_memory_pool().malloc)


def library(x: Any) -> str:
    """The name of the backend that an array or a Tensor belongs to, "" if it is something else."""
    owner = type(getattr(x, "value", x)).__module__
    owner = owner.partition(".")[0]
    return owner if owner in NAMES else ""


def refuse_others(arrays: dict[str, Any] | Iterable[tuple[str, Any]]) -> None:
    """Raise `Bad`, naming both libraries, for an array that does not belong to the chosen one."""
    chosen = name()
    for what, x in arrays.items() if isinstance(arrays, dict) else arrays:
        if (found := library(x)) not in ("", chosen):
            raise Bad(
                f"{what} is an array of {found}, and the backend is {chosen}: choose the backend (`minipeft.use`, --backend or "
                f"MINIPEFT_BACKEND) before any array is made, and make batches with `minipeft.batch`"
            )


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Within this context what a device raises, having no memory left or being lost, becomes one line of `Bad`."""
    try:
        yield
    except Exception as why:
        if not type(why).__module__.startswith("cupy") or isinstance(why, Bad):
            raise
        if isinstance(why, MemoryError):
            raise Bad(
                f"the GPU has no memory left: {_line(why)}{_memory()}; use fewer rows or a smaller model"
            ) from None
        raise Bad(f"the GPU or its driver failed: {_line(why)}; start the process again") from None


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Within this context memory is watched; afterwards the list holds the most bytes that were taken at once."""
    found: list[int] = []
    if name() != "cupy":
        tracemalloc.start()
        try:
            yield found
            found.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        return
    pool = xp.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    yield found
    found.append(pool.total_bytes() - before)  # a pool grows to its peak and keeps it


def _line(why: Exception) -> str:
    return " ".join(str(why).split()) or type(why).__name__


def _memory() -> str:
    """How much memory the GPU has and had free, if it still says so."""
    try:
        free, total = xp.cuda.runtime.memGetInfo()
    except Exception:  # the device that just failed may not answer either
        return ""
    return f" ({free / 2**20:,.0f} of {total / 2**20:,.0f} MiB are free)"


def read_only(x: Any) -> Any:
    """x, which cannot be written to through what is returned, its flags or its base: NumPy sees a read-only buffer. CuPy's arrays
    know no such thing, and are guarded by digests."""
    if name() != "numpy" or (not x.flags.writeable and isinstance(x.base, memoryview)):
        return x
    return xp.asarray(memoryview(x).toreadonly())


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
