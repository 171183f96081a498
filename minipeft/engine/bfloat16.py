"""bfloat16: a weight held in the upper half of its float32 bits, eight significant bits with the range of float32.

    round(x)   the nearest such number, of two equally near ones the even; hence |round(x) − x| ≤ u |x|, u = 2⁻⁸

NumPy has no such type: the bits are held as uint16. Nothing is computed in it but products, and those as a tensor core
does: both factors are bfloat16, the product of two numbers is exact in float32, and so is the sum but for float32's own
rounding.

>>> q = bfloat16(np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3.01], np.float32))
>>> [hex(bits) for bits in q.values]                # the second and third lie in the middle
['0x3f80', '0x3f80', '0x3f82', '0xc041']
>>> q.dequantize()
array([ 1.      ,  1.      ,  1.015625, -3.015625], dtype=float32)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine.backend import read_only, xp
from minipeft.engine.weight import Weight
from minipeft.errors import Bad

UNIT = 2.0**-8  # u
NAN = 0x7FC0


@dataclass(frozen=True, eq=False)
class Bfloat16(Weight):
    """An array held in bfloat16, read-only.

    values  (…) uint16     the bits

    `shape` and `size` are the array's, `dtype` is what it is computed with; an index gives numbers of it in that type.
    Raises `Bad` if the bits are no uint16.
    """

    values: Any
    form: ClassVar[str] = "bfloat16"
    dtype: ClassVar[Any] = np.dtype(np.float32)  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.values.dtype != np.uint16:
            raise Bad(f"bfloat16: expected the bits as uint16, found {self.values.dtype}")
        object.__setattr__(self, "values", read_only(self.values))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        return _wide(self.values[index])

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.values.shape

    @property
    def size(self) -> int:
        """How many numbers it stands for."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.values.nbytes

    def dequantize(self) -> Any:
        """The array in float32, exactly."""
        return _wide(self.values)

    def again(self, x: Any) -> Bfloat16:
        """Other numbers in bfloat16."""
        return bfloat16(x)

    def astype(self, dtype: Any) -> Any:
        """The array in another type: no longer held in this one."""
        return self.dequantize().astype(dtype, copy=False)

    def to_arrays(self) -> dict[str, Any]:
        """All of it as arrays by name, to be stored; `Bfloat16(**arrays)` is the inverse."""
        return {"values": self.values}


def bfloat16(x: Any) -> Bfloat16:
    """x, an array of floats of any shape and size, each number rounded once. The same bits on every device."""
    return Bfloat16(_bits(x))


def rounded(x: Any) -> Any:
    """The numbers of `bfloat16(x)` in the dtype of x."""
    return _wide(_bits(x)).astype(x.dtype, copy=False)


def _wide(bits: Any) -> Any:
    wide = bits.astype(xp.uint32)
    wide <<= 16
    return wide.view(xp.float32)


def _bits(x: Any) -> Any:
    single = x.astype(xp.float32, copy=False)
    bits = single.view(xp.uint32)
    if x.dtype.itemsize > 4:  # towards zero, with a last bit that says whether anything was cut off: no tie is made up
        back = single.astype(x.dtype)
        bits = (bits - (abs(back) > abs(x))) | (back != x)
    up = bits + 0x7FFF + (bits >> 16 & 1)
    return xp.where(single == single, up >> 16, NAN).astype(xp.uint16)
