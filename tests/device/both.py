"""A computation on NumPy and on a device, and how exactly they must agree: within K·u·cond, cond measured on NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from sampled import in_turn

from minipeft.conformance.laws import K
from minipeft.engine import backend, use
from minipeft.engine.backend import to_device, to_host
from minipeft.engine.tensor import value

Arrays = dict[str, Any]
# one of each kind on the stand-in, which all methods meet in the same few functions; every one of them on a GPU
FEW = (
    "adalora",
    "adapter_fusion",
    "bitfit",
    "dora",
    "fourierft",
    "ladder_side",
    "loreft",
    "oft",
    "poly",
    "prefix_tuning",
    "qlora",
    "x_lora",
)


def on(light: list, heavy: list, every: int = 1) -> list:
    """Parameters (device, …): the light ones on the stand-in, every so many of them in the default suite, the heavy ones on a GPU."""
    return in_turn([("strict", *p) for p in light], every) + [
        pytest.param("cupy", *p, marks=pytest.mark.gpu) for p in heavy
    ]


def computed(f: Callable[[Arrays], Arrays], inputs: Mapping[str, np.ndarray]) -> Arrays:
    """f of the inputs on the backend in use, fetched."""
    return {k: np.asarray(to_host(value(v))) for k, v in f({k: to_device(v) for k, v in inputs.items()}).items()}


def on_numpy(f: Callable[[], Any]) -> Any:
    """f() with NumPy as the backend, which is then again what it was."""
    before = backend.name()
    use("numpy")
    try:
        return f()
    finally:
        use(before)


def conditions(f: Callable[[Arrays], Arrays], inputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How much every result moves for relative changes of 1 in the inputs, or its size: the most of a few small ones, times 4."""
    rng = np.random.default_rng(11)
    at = computed(f, inputs)
    found = {k: float(abs(v).max(initial=0)) for k, v in at.items()}
    kinds = [v.dtype for v in inputs.values() if v.dtype.kind == "f"]
    half = float(np.finfo(kinds[0]).eps) ** 0.5 if kinds else 1.0
    for _ in range(3):
        there = computed(f, {k: nudged(v, half, rng) for k, v in inputs.items()})
        for k, v in there.items():
            found[k] = max(found[k], float(abs(v - at[k]).max(initial=0)) / half)
    return {k: 4 * v for k, v in found.items()}


def nudged(x: np.ndarray, by: float, rng: np.random.Generator) -> np.ndarray:
    return x * (1 + by * rng.choice([-1.0, 1.0], x.shape)).astype(x.dtype) if x.dtype.kind == "f" else x


def agree(
    f: Callable[[Arrays], Arrays],
    inputs: Mapping[str, np.ndarray],
    terms: Callable[[Arrays], dict[str, float]] = lambda want: {},
) -> float:
    """The largest err/(u·cond) of f on the backend in use against f on NumPy, asserted to be at most K.

    `terms` gives, for results whose terms cancel to next to nothing, how large the terms are: a cond that no change of the
    inputs shows, since it leaves the cancelling as it is.
    """
    got = computed(f, inputs)
    want, cond = on_numpy(lambda: (computed(f, inputs), conditions(f, inputs)))
    assert got.keys() == want.keys()
    for name, size in terms(want).items():
        cond[name] = max(cond[name], size)
    worst = 0.0
    for name, w in want.items():
        assert (got[name].shape, got[name].dtype) == (w.shape, w.dtype), name
        error = float(abs(got[name].astype(np.float64) - w).max(initial=0))
        unit = float(np.finfo(w.dtype).eps) / 2 * cond[name]
        ratio = error / unit if unit else (0.0 if error == 0 else float("inf"))
        assert ratio <= K, f"{name}: apart by {error:.3g}, err/(u·cond) = {ratio:.3g}"
        worst = max(worst, ratio)
    return worst
