"""A base model: an `Arch` of facts, a flat dict of read-only arrays, and the names others call them by."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.engine.backend import read_only, to_host
from minipeft.engine.bfloat16 import bfloat16
from minipeft.engine.weight import Weight, form, held_arrays, widened
from minipeft.errors import Bad, near
from minipeft.model.arch import Arch
from minipeft.model.names import Names
from minipeft.model.parts import kind_of


def float_type(dtype: Any) -> Any:
    """A dtype to compute in, or "bfloat16" as it is. Raises `Bad` for every other, float16 too: what exceeds 65504 is
    infinite there, and the ε of AdamW and of norms is 0."""
    if str(dtype) == "bfloat16":
        return "bfloat16"
    known = ("float32", "float64", "bfloat16")
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found == np.float16:
        raise Bad(
            "dtype float16: nothing is computed in it, for its numbers end at 65504; expected float32, float64 or bfloat16 "
            "(`load(folder, np.float32)`: a file in float16 is widened exactly)"
        )
    if found is None or found.name not in known:
        raise Bad(f"dtype {dtype!r}: expected one of {', '.join(known)}{near(str(dtype), known)}")
    return found


def largest_matrix(model: Model) -> int:
    """How many numbers its largest matrix holds."""
    return max((math.prod(W.shape) for W in model.params.values() if len(W.shape) == 2), default=0)


def converted(name: str, W: Any, dtype: Any) -> Any:
    """A parameter in the type that `Model.astype` says."""
    dtype = float_type(dtype)
    if str(dtype) != "bfloat16":
        return W.astype(dtype)
    if form(W) == "bfloat16":
        return W
    matrix = kind_of(name, tuple(W.shape)) in ("linear", "embedding") and not form(W)  # quantised: no
    return bfloat16(widened(W)) if matrix else W.astype(np.dtype(np.float32))


def _check_parameter(name: str, W: Any) -> None:
    """Raise `Bad` for a parameter that is no array of a type to compute in."""
    if not hasattr(W, "dtype"):
        raise Bad(f"{name}: expected an array, found {type(W).__name__}")
    try:
        float_type(W.dtype)
    except Bad as why:
        raise Bad(f"{name}: {why}") from None


class Parameters(dict):
    """Weights by name, none of which is exchanged for another."""

    def _refuse(self, *args: Any, **more: Any) -> Any:
        raise TypeError("the parameters of a model are not exchanged; dataclasses.replace makes another model")

    def __repr__(self) -> str:
        return f"Parameters({len(self)} arrays)"

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return Parameters, (dict(self),)


@dataclass(frozen=True)
class Model:
    """A base model: facts, read-only arrays by our names, and the other names of its modules.

    `config` is the checkpoint's config.json; `spare` what its file holds beyond this head, a pooler perhaps, under their
    names and in their layout. Both are empty for a model that came from no file. `drawn` are parameters that no file had,
    of a head that was put on. `folder` is the one that it was read from. `origin` tells which of its layers these are, where
    they were repeated (`minipeft.model.replicated`); empty: all of them, in order.
    """

    arch: Arch
    params: Mapping[str, Any]
    names: Names = field(default_factory=lambda: Names({}), repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    spare: Mapping[str, Any] = field(default_factory=dict, repr=False)
    drawn: frozenset[str] = field(default=frozenset(), repr=False)
    folder: Path | None = field(default=None, repr=False, compare=False)
    origin: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for k, v in self.params.items():
            if not isinstance(v, Weight):
                _check_parameter(k, v)
        once: dict[int, Any] = {}  # what stands under several names stays one
        for v in self.params.values():
            once.setdefault(id(v), v if isinstance(v, Weight) else read_only(v))
        held = {k: once[id(v)] for k, v in self.params.items()}
        object.__setattr__(self, "params", Parameters(held))

    def __repr__(self) -> str:
        half = "bfloat16 and " if "bfloat16" in self.forms else ""
        return f"Model({self.arch.family}, {self.size:,} parameters, {half}{self.dtype})"

    @property
    def dtype(self) -> Any:
        """The dtype of its arrays, and of everything that is computed with it."""
        return next(v.dtype for v in self.params.values() if not form(v))

    @property
    def forms(self) -> set[str]:
        """What its parameters are held in, arrays apart: "bfloat16", "nf4"."""
        return {form(v) for v in self.params.values()} - {""}

    @property
    def size(self) -> int:
        """How many numbers it holds; what stands under several names is held once."""
        return sum(int(np.prod(v.shape)) for v in {id(v): v for v in self.params.values()}.values())

    def astype(self, dtype: Any) -> Model:
        """The same model in another floating-point type. What is quantised stays so.

        "bfloat16": matrices of linears and embeddings are held in bfloat16, each number rounded once; all else is
        float32, and so is everything that is computed: products with these matrices round their other factor too, and
        are summed in float32. Raises `Bad` for what is no floating-point type.
        """
        names = {id(v): k for k, v in self.params.items()}
        made = {k: converted(k, self.params[k], dtype) for k in names.values()}
        return dataclasses.replace(self, params={k: made[names[id(v)]] for k, v in self.params.items()})

    def digest(self, without: Collection[str] = ()) -> str:
        """SHA-256 of every array's name, dtype, shape and bytes: equal if and only if the base is bit-identical.

        `without` names parameters that do not count."""
        h = hashlib.sha256()
        for name in sorted(self.params.keys() - set(without)):
            v = self.params[name]
            parts = held_arrays(v)
            for key in sorted(parts):
                a = np.ascontiguousarray(to_host(parts[key]))
                h.update(f"{name}:{key}:{a.dtype}:{a.shape}".encode())
                h.update(a.data)
        return h.hexdigest()
