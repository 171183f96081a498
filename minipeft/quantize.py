"""NF4: weights held in four bits. Dettmers et al. 2023, QLoRA, https://arxiv.org/abs/2305.14314

    c  = max|w| over a block of 64 values, in row-major order                 (paper, eq. 1, block-wise)
    w ≈ c · q[code],  code = the nearest of 16 values q                       (paper, eq. 4)
    c ≈ q₈[code₈] · a + μ, with double quantisation: μ the mean of all c, a = max|c − μ| over 256 of them (paper, §3)

Two codes share a byte, the first in the high half. Equal to bitsandbytes 0.50.2, code for code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from minipeft.engine.backend import to_device, to_host, xp
from minipeft.errors import Bad

# Quantiles of the normal distribution, in float32 as bitsandbytes holds them (see `derived`).
CODEBOOK = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


def derived() -> np.ndarray:
    """The codebook from its definition: 8 positive and 7 negative quantiles of N(0, 1) and zero, scaled to [−1, 1], float64."""
    from scipy.special import ndtri

    edge = 1 - (1 / 30 + 1 / 32) / 2
    positive, negative = ndtri(np.linspace(edge, 0.5, 9)[:-1]), -ndtri(np.linspace(edge, 0.5, 8)[:-1])
    q = np.sort(np.concatenate([positive, negative, [0.0]]))
    return q / q.max()


@cache
def dynamic_map() -> np.ndarray:
    """The 256 values of the signed 8-bit map for the block constants: seven decades, finer towards 1, float32 (256,)."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2**i + 1, dtype=np.float64)
        middle = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)
        values += [*middle, *-middle]
    return np.sort(np.array(values)).astype(np.float32)


def _nearest(x: Any, book: np.ndarray) -> Any:
    """Index of the nearest value of a sorted book; a value exactly between two goes to the lower."""
    return xp.searchsorted(to_device((book[1:] + book[:-1]) / 2), x, side="left").astype(xp.uint8)


@dataclass(frozen=True)
class NF4:
    """A quantised array: `codes` (⌈n/2⌉,) uint8, `absmax` one a block (float32, or uint8 codes with double quantisation)."""

    codes: Any
    absmax: Any
    shape: tuple[int, ...]
    dtype: Any
    block: int = 64
    scales: Any = None  # (⌈blocks/256⌉,) float32, with double quantisation
    mean: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return int(self.codes.nbytes + self.absmax.nbytes + (self.scales.nbytes + 4 if self.scales is not None else 0))

    @property
    def size(self) -> int:
        """How many numbers it stands for."""
        return math.prod(self.shape)

    def constants(self) -> Any:
        """The block constants c, float32 (blocks,)."""
        if self.scales is None:
            return self.absmax
        spread = xp.repeat(self.scales, 256)[: self.absmax.size]
        return to_device(dynamic_map())[self.absmax] * spread + xp.asarray(self.mean, xp.float32)

    def dequantize(self) -> Any:
        """The array it stands for, of `shape` and `dtype`."""
        n = self.size
        both = xp.stack([self.codes >> 4, self.codes & 15], axis=1).reshape(-1)[:n]
        values = to_device(CODEBOOK)[both] * xp.repeat(self.constants(), self.block)[:n]
        return values.astype(self.dtype).reshape(self.shape)

    def to_arrays(self) -> dict[str, Any]:
        """Everything it holds, as arrays."""
        out = {"codes": self.codes, "absmax": self.absmax, "shape": np.array(self.shape), "block": np.array([self.block])}
        if self.scales is not None:
            out |= {"scales": self.scales, "mean": np.array([self.mean], np.float32)}
        return out

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any], dtype: Any = np.float32) -> NF4:
        """The inverse of `to_arrays`."""
        shape = tuple(int(s) for s in to_host(arrays["shape"]))
        mean = float(to_host(arrays["mean"])[0]) if "mean" in arrays else 0.0
        block = int(to_host(arrays["block"])[0])
        return cls(arrays["codes"], arrays["absmax"], shape, np.dtype(dtype), block, arrays.get("scales"), mean)


def quantize(W: Any, block: int = 64, double: bool = False) -> NF4:
    """W in NF4, with block constants in float32 or, with `double`, in 8 bits. Raises `Bad` for an empty array or odd block.

    >>> quantize(np.array([[2.0, -1.0]])).dequantize()
    array([[ 2.       , -1.0501461]])
    """
    if W.size == 0 or block < 2 or block % 2:
        raise Bad(f"quantize: expected a non-empty array and an even block, found shape {tuple(W.shape)} and block {block}")
    n = W.size
    flat = xp.zeros(-(-n // block) * block, xp.float32)
    flat[:n] = W.reshape(-1).astype(xp.float32)
    blocks = flat.reshape(-1, block)
    c = abs(blocks).max(axis=1)
    scaled = blocks * (1 / xp.where(c == 0, xp.float32(1), c))[:, None]
    codes = _nearest(scaled, CODEBOOK).reshape(-1)[: n + n % 2]
    packed = (codes[0::2] << 4) | codes[1::2]
    if not double:
        return NF4(packed, c, tuple(W.shape), W.dtype, block)
    mean = c.mean(dtype=xp.float32)
    z = xp.zeros(-(-c.size // 256) * 256, xp.float32)
    z[: c.size] = c - mean
    z = z.reshape(-1, 256)
    a = abs(z).max(axis=1)
    z = z * (1 / xp.where(a == 0, xp.float32(1), a))[:, None]
    # bitsandbytes looks the nearest value up in a table over 2¹⁶ points of [−1, 1]: round to them first
    step = xp.float32(65535 / 2)
    z = xp.floor((z + xp.float32(1)) * step + xp.float32(0.5)).astype(xp.float64) * (2 / 65535) - 1
    codes8 = _nearest(z, dynamic_map().astype(np.float64)).reshape(-1)[: c.size]
    return NF4(packed, codes8, tuple(W.shape), W.dtype, block, a, float(mean))
