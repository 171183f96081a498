"""Weights held in four bits, NF4 or FP4, and in eight.

NF4  Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, §3

    c_b = max |W_i| over block b                 blocks of 64 consecutive values, rows first; c in float32
    q_i = argmin_k |W_i / c_b − t_k|             a value on a midpoint takes the lower code
    Ŵ_i = t[q_i] c_b                             hence |Ŵ_i − W_i| ≤ 0.152 c_b, half the widest gap

    t: quantiles of N(0, 1), evenly spaced in probability (`normal_float`), divided by the largest

FP4  the same with other t, `four_bit_float`: a sign, two bits of exponent, one of mantissa.

Double quantisation (`double=True`) holds the constants c in eight bits, in turn in blocks of 256:

    μ = mean c,   a_B = max |c_b − μ|,   q_b = argmin_k |(c_b − μ) / a_B − d_k|,   ĉ_b = d[q_b] a_B + μ

    d: the signed dynamic map (`dynamic_map`)

INT8 Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, §2.1, its row-wise half, which weights are held in

    c_o = max |W_oi| over row o,   q_oi = round(127 W_oi / c_o),   Ŵ_oi = q_oi c_o / 127     hence |Ŵ − W| ≤ c_o / 254

Size     4 + 32/64 = 4.5 bits a number; doubly quantised 4 + 8/64 + 32/(64·256) ≈ 4.127. Eight bits: 8 + 32/in.
Packing  Two codes of four bits a byte, the first in the high half; an odd end is filled with a code of 0.
Differs  Codes, constants and values equal bitsandbytes 0.50.2 (on a weight of odd shape it divides the last, incomplete
         block where it multiplies by 1/c elsewhere; we always multiply, so a value within one rounding of a midpoint
         may differ there; and it holds 1e-38, not 0, for such a block of zeros). The eight-bit codes of constants are the nearest
         ones here; the CPU code of bitsandbytes strays from the nearest in about 1 of 600, by up to three codes. On a
         processor with AVX-512 it also takes constants of other blocks for a matrix whose width is a multiple of 16 but not
         of 64: codes and constants are right, the values off by as much as they are large. It rounds
         W to float16 before eight bits, which `int8` does too; what enters a linear it rounds to eight bits as well, which is not done here.

>>> q = quantize(np.array([[8.0, -8.0, 0.0], [4.0, 1.0, -2.0]], np.float32))
>>> q.absmax                                        # the largest
array([8.], dtype=float32)
>>> [hex(byte) for byte in q.codes]                 # ±1 are codes f and 0, 0 is 7; 0.5 is nearest to t[12] = 0.4407
['0xf0', '0x7c', '0x94']
>>> q.dequantize().round(3)
array([[ 8.   , -8.   ,  0.   ],
       [ 3.526,  1.287, -2.276]], dtype=float32)
>>> quantize(np.array([[8.0, -4.1], [0.5, 0.25]], np.float32), code="int8").codes
array([[127, -65],
       [127,  64]], dtype=int8)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import backend
from minipeft.engine.backend import once, read_only, to_device, to_host, xp
from minipeft.engine.bfloat16 import rounded
from minipeft.engine.weight import Weight
from minipeft.errors import Bad

# fmt: off
NF4_CODEBOOK = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # (16,) the values every NF4 checkpoint is made with: `normal_float()` to 2e-7, having been derived in float32 once
# fmt: on

CONSTANTS = 256  # constants in one block of the second quantisation
CHUNK = 1 << 18  # bytes of codes whose values are looked up at once


def normal_float() -> np.ndarray:
    """(16,) float64: the codebook derived, −1 … 1 ascending, with 7 negative values, 0 and 8 positive ones.

    Both tails start at probability δ = 1 − ½(1/30 + 1/32), the mean of the ends that 15 and 16 even steps would have.
    Source: the paper, §3 and its appendix on NF4.
    """
    from scipy.special import ndtri  # Φ⁻¹

    delta = 1 - (1 / 30 + 1 / 32) / 2
    above, below = ndtri(np.linspace(delta, 0.5, 9)[:-1]), ndtri(np.linspace(delta, 0.5, 8)[:-1])
    return np.sort(np.concatenate([above, [0.0], -below])) / above[0]


def four_bit_float() -> np.ndarray:
    """(16,) float64: the values of FP4 by their codes, bits s e e m: ± 2^(4−e) (1 + m/2) / 12, and ± m/192 where e is 0."""
    above = np.array([m / 192 if e == 0 else 2 ** (4 - e) * (1 + m / 2) / 12 for e in range(4) for m in range(2)])
    return np.concatenate([above, 0.0 - above])


FP4_CODEBOOK = four_bit_float().astype(np.float32)
CODEBOOKS = {"nf4": NF4_CODEBOOK, "fp4": FP4_CODEBOOK}


@cache
def dynamic_map() -> np.ndarray:
    """(256,) float32: the signed dynamic eight-bit map of Dettmers 2016, https://arxiv.org/abs/1511.04561, ascending.

    Decade 10^(i−6), i = 0 … 6, has 2^i evenly spaced values, each the middle of its cell of [0.1, 1]; then both signs, 0
    and 1. A small number keeps its magnitude, a large one its digits.
    """
    cells = [10.0 ** (i - 6) * (0.1 + 0.9 * (np.arange(2**i) + 0.5) / 2**i) for i in range(7)]
    positive = np.concatenate(cells)
    return np.sort(np.concatenate([-positive, [0.0], positive, [1.0]])).astype(np.float32)


@dataclass(frozen=True)
class FourBits(Weight):
    """An array held in four bits a number.

    codes   (⌈n/2⌉,) uint8     two codes a byte
    absmax  (⌈n/block⌉,)       float32 constants c; uint8 codes of them where doubly quantised
    scale   (⌈blocks/256⌉,)    float32 a, only where doubly quantised
    offset  ()                 float32 μ, only where doubly quantised
    table   (256,)             float32 d, only where a file brings its own, which is rounded otherwise than `dynamic_map`
    """

    codes: Any
    absmax: Any
    shape: tuple[int, ...]
    dtype: Any
    block: int = 64
    scale: Any = None
    offset: Any = None
    table: Any = None
    quantised: ClassVar[bool] = True
    code: str = "nf4"  # or "fp4": which values the codes stand for
    rounds: str = ""  # "float16" or "bfloat16": values are rounded to it first, as bitsandbytes does in such a base

    def __post_init__(self) -> None:
        for name in ("codes", "absmax", "scale", "offset", "table"):
            if (a := getattr(self, name)) is not None:
                object.__setattr__(self, name, read_only(a))

    @property
    def form(self) -> str:  # type: ignore[override]
        """What it is held in, as `load` has it."""
        return f"{self.code}-double" if self.double else self.code

    @property
    def size(self) -> int:
        """How many numbers it stands for."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        return sum(a.nbytes for a in (self.codes, self.absmax, self.scale, self.offset, self.table) if a is not None)

    @property
    def double(self) -> bool:
        """Whether the constants are quantised too."""
        return self.scale is not None

    def astype(self, dtype: Any) -> FourBits:
        """The same codes, standing for numbers in another type."""
        return replace(self, dtype=np.dtype(dtype))

    def constants(self) -> Any:
        """(⌈n/block⌉,) float32: the constant of every block."""
        if not self.double:
            return self.absmax
        spread = xp.repeat(self.scale, CONSTANTS)[: self.absmax.size]
        return (_eight_bits() if self.table is None else self.table)[self.absmax] * spread + self.offset

    def dequantize(self) -> Any:
        """The array of `shape` in `dtype`: the product in float32, rounded once, or first to what `rounds` says."""
        pairs, whole = xp.empty(len(self.codes), xp.uint64), self.size // self.block * self.block
        step = CHUNK if backend.name() == "numpy" else max(len(pairs), 1)
        for at in range(0, len(pairs), step):  # NumPy makes of indices so many of eight bytes
            pairs[at : at + step] = _pairs(self.code)[self.codes[at : at + step]]
        values, constants = pairs.view(xp.float32)[: self.size], self.constants()
        blocks, rest = values[:whole].reshape(-1, self.block), values[whole:]
        blocks *= constants[: len(blocks), None]
        if len(rest):
            rest *= constants[-1]
        product = values.reshape(self.shape)
        if self.rounds:
            product = rounded(product) if self.rounds == "bfloat16" else product.astype(self.rounds)
        return product.astype(self.dtype, copy=False)

    def to_arrays(self) -> dict[str, Any]:
        """All of it as arrays by name, to be stored: the fields, the dtype as an empty array `like` of it."""
        like = xp.empty(0, self.dtype)
        arrays = dict(
            codes=self.codes, absmax=self.absmax, scale=self.scale, offset=self.offset, table=self.table, like=like
        )
        numbers = dict(shape=np.array(self.shape, np.int64), block=np.array(self.block, np.int64))
        words = dict(rounds=self.rounds, code="" if self.code == "nf4" else self.code)
        numbers |= {k: np.frombuffer(word.encode(), np.uint8) for k, word in words.items() if word}
        return {k: a for k, a in arrays.items() if a is not None} | numbers

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> FourBits:
        """Inverse of `to_arrays`. Raises `Bad` if arrays are missing or do not fit each other."""
        wanted = {"codes", "absmax", "shape", "block", "like"}
        nested = {"scale", "offset"}
        if set(arrays) - {"rounds", "code"} not in (wanted, wanted | nested, wanted | nested | {"table"}):
            raise Bad(
                f"four bits: expected arrays {sorted(wanted)}, perhaps with {sorted(nested)}; found {sorted(arrays)}"
            )
        rounds, code = (
            to_host(arrays[k]).tobytes().decode(errors="replace") if k in arrays else "" for k in ("rounds", "code")
        )
        if rounds not in ("", "float16", "bfloat16"):
            raise Bad(f"four bits: rounds must be float16 or bfloat16, found {rounds!r}")
        if (code := code or "nf4") not in CODEBOOKS:
            raise Bad(f"four bits: code must be nf4 or fp4, found {code!r}")
        shape, block = (to_host(arrays[k]) for k in ("shape", "block"))
        if shape.ndim != 1 or shape.dtype.kind != "i" or (shape < 0).any():
            raise Bad(f"four bits: shape must be a vector of lengths, found {shape.dtype} {shape.tolist()}")
        if block.ndim or block.dtype.kind != "i" or block < 1:
            raise Bad(f"four bits: block must be one positive integer, found {block.dtype} {block.tolist()}")
        lengths, block = tuple(shape.tolist()), int(block)
        blocks, kind = -(-math.prod(lengths) // block), "uint8" if "scale" in arrays else "float32"
        fits: dict[str, tuple[tuple[int, ...], str]] = {
            "codes": ((-(-math.prod(lengths) // 2),), "uint8"),
            "absmax": ((blocks,), kind),
            "scale": ((-(-blocks // CONSTANTS),), "float32"),
            "offset": ((), "float32"),
            "table": ((256,), "float32"),
        }
        for name in fits.keys() & arrays.keys():
            found, expected = (arrays[name].shape, str(arrays[name].dtype)), fits[name]
            if found != expected:
                raise Bad(
                    f"four bits: {name} of shape {lengths} must be {expected[1]} {expected[0]}, found {found[1]} {found[0]}"
                )
        held = {name: arrays[name] for name in fits.keys() & arrays.keys()}
        return cls(shape=lengths, dtype=arrays["like"].dtype, block=block, rounds=rounds, code=code, **held)


@once
def _pairs(code: str) -> np.ndarray:
    """(256,) the bits of both values of every byte, the first in the lower half."""
    return CODEBOOKS[code][np.stack(np.divmod(np.arange(256), 16), 1)].view(np.uint64)[:, 0]


@once
def _eight_bits() -> np.ndarray:
    return dynamic_map()


@dataclass(frozen=True)
class EightBits(Weight):
    """A matrix held in eight bits a number: codes (out, in) int8, absmax (out,) float32, the constants of the rows."""

    codes: Any
    absmax: Any
    dtype: Any
    form: ClassVar[str] = "int8"
    quantised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("codes", "absmax"):
            object.__setattr__(self, name, read_only(getattr(self, name)))

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the matrix."""
        return tuple(self.codes.shape)

    @property
    def size(self) -> int:
        """How many numbers it stands for."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        return self.codes.nbytes + self.absmax.nbytes

    def astype(self, dtype: Any) -> EightBits:
        """The same codes, standing for numbers in another type."""
        return replace(self, dtype=np.dtype(dtype))

    def dequantize(self) -> Any:
        """The matrix in `dtype`: q c, times 1/127, in float32."""
        return (self.codes * self.absmax[:, None] * xp.float32(1 / 127)).astype(self.dtype)

    def to_arrays(self) -> dict[str, Any]:
        """All of it as arrays by name, to be stored; the dtype as an empty array `like` of it."""
        return dict(codes=self.codes, absmax=self.absmax, like=xp.empty(0, self.dtype))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> EightBits:
        """Inverse of `to_arrays`. Raises `Bad` if arrays are missing or do not fit each other."""
        if set(arrays) != (wanted := {"codes", "absmax", "like"}):
            raise Bad(f"eight bits: expected arrays {sorted(wanted)}, found {sorted(arrays)}")
        codes, absmax = arrays["codes"], arrays["absmax"]
        if (codes.ndim, str(codes.dtype)) != (2, "int8"):
            raise Bad(f"eight bits: expected codes (out, in) of int8, found {codes.dtype} {codes.shape}")
        if (absmax.shape, str(absmax.dtype)) != (codes.shape[:1], "float32"):
            raise Bad(f"eight bits: expected absmax {codes.shape[:1]} of float32, found {absmax.dtype} {absmax.shape}")
        return cls(codes, absmax, arrays["like"].dtype)


HELD = {"nf4": FourBits, "fp4": FourBits, "int8": EightBits}  # by code


def quantize(W: Any, block: int = 64, double: bool = False, code: str = "nf4") -> FourBits | EightBits:
    """W, an array of floats of any shape, in NF4 or FP4, or a matrix in INT8, which has rows for blocks and is not doubly quantised.

    Values are rounded to float32 first, as the constants are. It is done on the host, so that the codes and constants are the same bits
    on every device. Raises `Bad` if W is not of floats, holds what is not finite in float32, or for INT8 float16, or `block` is not positive.
    """
    if block < 1:
        raise Bad(f"{code}: block must be at least 1, found {block}")
    if W.dtype.kind != "f":
        raise Bad(f"{code}: expected an array of floats, found {W.dtype}")
    if code == "int8":
        return _rows(W)
    values = _blocks(to_host(W).reshape(-1).astype(np.float32), block)
    absmax = np.abs(values).max(axis=1)
    if not np.isfinite(absmax).all():
        raise Bad(f"{code}: the weight of shape {W.shape} has values that are not finite in float32")
    held = dict(codes=_pack(_coded(values, absmax, code).reshape(-1)[: W.size], code), absmax=absmax)
    if double:
        offset = absmax.mean(dtype=np.float32) if absmax.size else np.zeros((), np.float32)
        rest = _blocks(absmax - offset, CONSTANTS)
        scale = np.abs(rest).max(axis=1)
        codes = _nearest(_relative(rest, scale), dynamic_map()).reshape(-1)[: absmax.size]
        held |= dict(absmax=codes, scale=scale, offset=np.asarray(offset))
    return FourBits(
        shape=tuple(W.shape), dtype=W.dtype, block=block, code=code, **{k: to_device(a) for k, a in held.items()}
    )


def _rows(W: Any) -> EightBits:
    if W.ndim != 2:
        raise Bad(f"int8: expected a matrix, found shape {tuple(W.shape)}")
    with np.errstate(over="ignore"):
        half = to_host(W).astype(np.float16)
    if not np.isfinite(half).all():
        raise Bad(f"int8: the weight of shape {tuple(W.shape)} has values that are not finite in float16")
    values = half.astype(np.float32)
    absmax = np.abs(values).max(axis=1, initial=0)
    scale = np.float32(1) / np.where(absmax > 0, absmax, 1) * np.float32(127)
    codes = np.rint(values * scale[:, None]).astype(np.int8)
    return EightBits(to_device(codes), to_device(absmax), W.dtype)


def _blocks(flat: np.ndarray, length: int) -> np.ndarray:
    """(n,) -> (⌈n/length⌉, length), the end filled with zeros."""
    short = -flat.size % length
    return (np.pad(flat, (0, short)) if short else flat).reshape(-1, length)


def _relative(values: np.ndarray, absmax: np.ndarray) -> np.ndarray:
    """(b, n) values over their (b,) constants; a block of zeros stays one."""
    return values * (np.float32(1) / np.maximum(absmax, np.float32(1e-38)))[:, None]


def _nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """uint8: indices of the entries of an ascending table that are nearest, of two as near the lower."""
    return np.searchsorted((table[1:] + table[:-1]) / np.float32(2), values).astype(np.uint8)


def _coded(values: np.ndarray, absmax: np.ndarray, code: str) -> np.ndarray:
    """(b, n) values, (b,) constants -> (b, n) uint8 codes."""
    order = np.argsort(CODEBOOKS[code], kind="stable").astype(
        np.uint8
    )  # of FP4's two noughts the second is above the first
    return order[_nearest(_relative(values, absmax), CODEBOOKS[code][order])]


def _pack(codes: np.ndarray, code: str) -> np.ndarray:
    """(n,) codes below 16 -> (⌈n/2⌉,) bytes, the first of each pair in the high half."""
    codes = np.pad(codes, (0, codes.size % 2), constant_values=int(np.flatnonzero(CODEBOOKS[code] == 0)[0]))
    return codes[::2] << 4 | codes[1::2]
