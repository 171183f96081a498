"""A weight that lies in a file: its pages are read as they are used, and processes share them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minipeft.engine.backend import read_only
from minipeft.engine.bfloat16 import Bfloat16, bfloat16
from minipeft.engine.weight import Weight, held_arrays, widened
from minipeft.errors import Bad


@dataclass(frozen=True, eq=False)
class Mapped(Weight):
    """An array in a file that is mapped into memory.

    source  a view of the file: numbers, or with `bits` those of bfloat16 as uint16
    what    names it in errors
    kept    the type it is used in, "bfloat16" too; None: the file's own, float32 for bfloat16

    It is converted and checked at its first use, and kept: where file and use have one type, that is the file's pages.
    """

    source: np.ndarray
    what: str
    bits: bool = False
    kept: Any = None

    @property
    def form(self) -> str:  # type: ignore[override]
        return "bfloat16" if str(self.kept) == "bfloat16" else ""

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.source.shape)

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        if self.form or (self.kept is None and self.bits):
            return np.dtype(np.float32)
        return self.source.dtype if self.kept is None else np.dtype(self.kept)

    @property
    def size(self) -> int:
        """How many numbers it stands for."""
        return int(self.source.size)

    @property
    def ndim(self) -> int:
        return self.source.ndim

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.source.nbytes

    def held(self) -> Any:
        """What is computed with, an array or a `Bfloat16`. Raises `Bad` for numbers that are not finite in that type."""
        if "_held" not in self.__dict__:
            a: Any = np.require(
                self.source, None, ["C", "A"]
            )  # another writer's file may hold it where no number can stand
            a = Bfloat16(a) if self.bits else a
            with np.errstate(over="ignore"):
                made = (a if self.bits else bfloat16(a)) if self.form else widened(a).astype(self.dtype, copy=False)
            if not (finite := np.isfinite(widened(made))).all():
                beyond = f"NaN, infinite or beyond the range of {self.dtype}"
                raise Bad(f"{self.what} has {int((~finite).sum())} of {self.size} weights that are {beyond}")
            object.__setattr__(self, "_held", made if self.form else read_only(made))
        return self.__dict__["_held"]

    def dequantize(self) -> Any:
        return widened(self.held())

    def factor(self) -> Any:
        return self.held()

    def again(self, x: Any) -> Any:
        return bfloat16(x) if self.form else x

    def to_arrays(self) -> dict[str, Any]:
        return held_arrays(self.held())

    def astype(self, dtype: Any, copy: bool = False) -> Any:
        """The array in another type."""
        return self.dequantize().astype(dtype, copy=copy)

    def used_in(self, dtype: Any) -> Mapped:
        """The same, to be used in another type."""
        return replace(self, kept=dtype)

    # a file's layout as ours, before anything is read

    @property
    def T(self) -> Mapped:
        return replace(self, source=self.source.T)

    def reshape(self, *shape: Any) -> Mapped:
        return replace(self, source=self.source.reshape(*shape))

    def __getitem__(self, index: Any) -> Any:
        return self.dequantize()[index]

    def __len__(self) -> int:
        return len(self.source)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        found = np.asarray(self.dequantize())
        return found if dtype is None else found.astype(dtype, copy=False)
