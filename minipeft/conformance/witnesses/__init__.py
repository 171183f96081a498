"""Witnesses: closed forms, written apart from the methods' files, with NumPy alone and without their helpers.

A file has the name of its method. Its `closed(m, t)` takes the method, for its settings, and all tensors of a forward case
by name; it gives the outputs by name. A variant that computes the same imports it. What several need is here.
Where dropout does not act on the input of the whole change, `dropped(m, t)` is the form in training: t["kept"] is what it leaves of x.

Where training starts from something computed, `start_NAME(m, t)` gives the array NAME, or what is derived of the arrays under
that name, as it is then. `removed(m, t)` is what a residual base has lost, where it is not s B₀ A₀. `TINY` are settings, and
shapes of arrays, for the tiny tier.

What belongs to the training of a method beside its outputs: `rates(m)` are factors on learning rates, {array: factor}; `added(m, a)` the
gradients of what is added to the loss, by the arrays at one site; `before(m, t, T, a, g, fixed, kept)` gives the gradients as the
optimiser sees them in step t of T, `after` the arrays after it; `fixed` are the stored arrays, `kept` is theirs from step to step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.special import erf

Tensors = dict[str, np.ndarray]


@cache
def _module(name: str) -> Any:
    module = f"{__name__}.{name}"
    return import_module(module) if find_spec(module) else None


def closed_form(name: str) -> Callable[[Any, Tensors], Tensors] | None:
    """The closed form of the method of this name, None if it has none."""
    return getattr(_module(name), "closed", None)


def dropped_form(name: str) -> Callable[[Any, Tensors], Tensors] | None:
    """The closed form of the method of this name in training, where its dropout is not the rule's; None where it is."""
    return getattr(_module(name), "dropped", None)


def removed_by(name: str) -> Callable[[Any, Tensors], np.ndarray]:
    """What is taken from the base of the method of this name, of which no dropout knows."""
    return getattr(_module(name), "removed", lambda m, t: scale(m) * t["B0"] @ t["A0"])


def starts_of(name: str) -> tuple[str, Callable[..., np.ndarray]] | None:
    """What is told of the arrays of a method as training starts, and its witness; None for what is drawn at random."""
    module = _module(name)
    return (
        next(((k.removeprefix("start_"), f) for k, f in vars(module).items() if k.startswith("start_")), None)
        if module
        else None
    )


def training_of(name: str) -> SimpleNamespace:
    """What belongs to the training of the method of this name: `rates`, `added`, `before` and `after`, of which it may have none."""
    plain: dict[str, Any] = dict(
        rates=lambda m: {}, added=lambda m, a: {}, before=lambda m, t, T, a, g, fixed, kept: g, after=lambda m, t, T, a, g, fixed, kept: a,
    )  # fmt: skip
    found = vars(_module(name)) if name and _module(name) else {}
    return SimpleNamespace(**{k: found.get(k, f) for k, f in plain.items()})


def tiny_of(name: str) -> tuple[tuple[dict[str, Any], dict[str, tuple[int, ...]]], ...]:
    """Settings and shapes of arrays of a method's cases in the tiny tier."""
    return getattr(_module(name), "TINY", ())


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def each(f: Callable[..., np.ndarray], *streams: np.ndarray) -> np.ndarray:
    """f of every token's vectors."""
    rows = [[f(*(s[i, t] for s in streams)) for t in range(streams[0].shape[1])] for i in range(len(streams[0]))]
    return np.array(rows)


def scale(m: Any) -> float:
    return m.alpha / (np.sqrt(m.r) if getattr(m, "rslora", False) else m.r)


def bottleneck(m: Any, t: Tensors, h: np.ndarray, end: str = "") -> np.ndarray:
    """The output of a bottleneck, before it is added."""
    return t["Wu" + end] @ ACTIVATIONS[m.f](t["Wd" + end] @ h + t["bd" + end]) + t["bu" + end]
