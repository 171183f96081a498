"""Broken implementations, one for each way in which real ones were wrong: minipeft with one error planted.

`general`, `dropout`, `training` and `virtual` hold those of no one method; a file with the name of a method those of that method, and what it imports of another's.
To plant an error, write a class over one of those here, its first line saying what is wrong, under `@mutant`. Beside them such a file
says which `CASES` the method needs beyond its options, which small errors in its code it `SURVIVES`, what is `ALIKE` in all cases, and `WITHOUT` which files it does, and why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import numpy as np

from minipeft.conformance import acting
from minipeft.conformance.cases import Case
from minipeft.conformance.own import Own, method_of
from minipeft.engine import ops
from minipeft.engine.tensor import value
from minipeft.method import METHODS, Method, load_methods

Arrays = dict[str, Any]
GENERAL = ("general", "dropout", "training", "virtual")  # files of errors of no one method
ALONE = {"forward", "vjp", "init", "train", "load"}  # what is asked and answers nothing else


@dataclass(frozen=True)
class Where:
    """The methods that a planted error concerns: in words, and whether a method is one."""

    words: str
    holds: Callable[[type[Method]], bool]


EVERY = Where("all", lambda cls: True)


def has(*settings: str) -> Where:
    """The methods that have these settings."""
    words = " and ".join(f"`{s}`" for s in settings)
    return Where(f"with {words}", lambda cls: set(settings) <= {f.name for f in dataclasses.fields(cls)})


def named(*names: str) -> Where:
    """The methods of these names."""
    return Where(", ".join(names), lambda cls: cls.name in names)


@dataclass(frozen=True)
class Mutant:
    """A planted error: its name, what it does, the methods it concerns, the checks meant to see it, real incidents of it."""

    name: str
    about: str
    where: Where
    checks: tuple[str, ...]
    incidents: str
    make: type[Own]

    def concerns(self, case: Case) -> bool:
        """Whether the case's method is one of those, and what is asked may come out otherwise."""
        classes = self.make.__mro__[: self.make.__mro__.index(Own)]
        own = {name for c in classes for name, f in vars(c).items() if callable(f)}
        asked = case.ask in self.make.asks if self.make.asks else case.ask in own or not own <= ALONE
        return self.where.holds(METHODS[case.method]) and asked


def mutant(
    checks: str = "forward", incidents: str = "", where: Where | None = None
) -> Callable[[type[Own]], type[Own]]:
    """Mark a broken implementation. Without `where` it concerns the methods whose files hold or import it."""

    def mark(cls: type[Own]) -> type[Own]:
        cls.planted = tuple(checks.split()), incidents, where  # type: ignore[attr-defined]
        return cls

    return mark


def planted(module: ModuleType) -> Iterator[type[Own]]:
    """The broken implementations that a file holds or imports."""
    return (c for c in vars(module).values() if isinstance(c, type) and "planted" in vars(c))


def said(method: str, word: str) -> Mapping[str, Any]:
    """What the file of a method's mutants says beside: its `CASES`, `SURVIVES`, `ALIKE` or `WITHOUT`; nothing if there is no such file."""
    module = f"{__name__}.{method}"
    return getattr(import_module(module), word, {}) if find_spec(module) else {}


@cache
def every() -> dict[str, Mutant]:
    """All mutants by name: those of no one method first, then those of the methods, by the alphabet."""
    load_methods()
    files = sorted(m.name for m in iter_modules(__path__) if m.name in METHODS)
    modules = {name: import_module(f"{__name__}.{name}") for name in (*GENERAL, *files)}
    found: dict[type[Own], list[str]] = {}
    for name, module in modules.items():
        for cls in planted(module):
            found.setdefault(cls, []).append(name)
    out: dict[str, Mutant] = {}
    for cls, names in found.items():
        checks, incidents, where = cls.planted  # type: ignore[attr-defined]
        if cls.__name__ in out:
            raise TypeError(f"two mutants are named {cls.__name__}: in {', '.join(names)} and elsewhere")
        about = " ".join((cls.__doc__ or "").split()).rstrip(".")
        out[cls.__name__] = Mutant(cls.__name__, about, where or named(*names), checks, incidents, cls)
    return out


# --- what mutants start from ------------------------------------------------------------------------------------------


class Settings(Own):
    """A mutant that reads its configuration wrongly."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return {}

    def method(self, case: Case) -> Method:
        m = method_of(case)
        changed = self.change(m)
        return dataclasses.replace(m, **changed) if changed else m


class Tensors(Own):
    """A mutant that takes its arrays or inputs wrongly."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        return super().outputs(case, *self.change(case, dict(inputs), dict(arrays)))

    def merge(self, case: Case) -> Arrays:
        own, base = case.named("array", "stored"), case.named("base")
        base, own = self.change(case, base, own)
        changed = {k: value(v) for k, v in (base | own).items() if k in case.inputs}
        return super().merge(dataclasses.replace(case, inputs={**case.inputs, **changed}))


class Outputs(Own):
    """A mutant that computes something else from the right outputs."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return out

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        out = super().outputs(case, inputs, arrays)
        return out if case.place.endswith("_in_decoder") else self.change(case, out, inputs, arrays)

    def merge(self, case: Case) -> Arrays:
        """What a linear merges to that has these outputs: those of no input, and of each alone."""
        if case.place not in ("linear", "feedforward"):
            return super().merge(case)
        each = np.concatenate([np.zeros((1, case.inputs["W"].shape[1])), np.eye(case.inputs["W"].shape[1])])
        inputs = case.named("input", "base") | {"x": each[None].astype(case.dtype)}
        y = value(self.outputs(case, inputs, case.named("array", "stored"))["y"])[0]
        return {"W": (y[1:] - y[0]).T, "b": y[0]}


class Weights(Own):
    """A mutant that makes another weight of a linear's: `change` says W'. Training drops what it drops."""

    change: Callable[[Case, Any, Arrays], Any]

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        if case.place not in ("linear", "feedforward"):
            return super().outputs(case, inputs, arrays)
        W, x, keep = inputs["W"], inputs["x"], inputs.get("keep")
        kept = x if keep is None else x * (keep * (1 / (1 - method_of(case).dropout)))  # type: ignore[attr-defined]
        return dict(y=ops.linear(x, W, inputs["b"]) + ops.linear(kept, self.change(case, W, arrays) - W))

    def merge(self, case: Case) -> Arrays:
        own = case.named("array", "stored")
        return case.named("base") | {"W": value(self.change(case, case.tensors["W"], own))}


def scale_of(case: Case) -> float:
    """The scale of the case's method: its own, or α/r."""
    m: Any = method_of(case)
    return float(m.scale if hasattr(m, "scale") else m.alpha / m.r)


def held(case: Case) -> np.ndarray:
    """The base's weight as the method holds it, quantised perhaps."""
    return value(acting.held(method_of(case), case.tensors["W"]))
