"""The random numbers of torch's CPU generator, in NumPy, for frozen arrays that checkpoints give only by their seed.

    words         MT19937 with the classic seeding by one 32-bit integer; u32 is one word, u64 two, the high one first
    uniform       u ∈ [0, 1) is the low 24 bits of a u32 over 2²⁴ (float64: 53 bits of a u64 over 2⁵³); low + u (high − low)
    normal        Box–Muller on pairs (u, v): √(−2 ln(1 − u)) times cos 2πv and sin 2πv. From 16 numbers on, u and v are 8
                  apart in blocks of 16, and an incomplete end redraws the last 16 numbers; below, always in float64,
                  a number takes two draws, v then u, for its cosine, and the next takes the sine, kept until then
    permutation   swap place i with i + u32 mod (n − i), i = 0 … n − 2. From n = ⌊(2³² − 1)/20⌋ on, in its place: append i,
                  swap it with place u64 mod (i + 1), i = 0 … n − 1

Checked against torch 2.13: permutations and uniforms in float32 and bfloat16 equal bit for bit; normals and float64 uniforms up to the
last bits, in which torch itself depends on the processor.

>>> TorchGenerator(0).permutation(5)              # torch.randperm(5, generator=torch.Generator().manual_seed(0))
array([4, 0, 1, 3, 2])
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from minipeft.errors import Bad

UNSEEDED = 67280421310721  # the seed of a torch.Generator that was given none
LARGE = (2**32 - 1) // 20  # a u32 modulo so large a number would be uneven: the permutation changes its recipe


class TorchGenerator:
    """The stream of `torch.Generator("cpu").manual_seed(seed)`; successive draws go on where the last one ended.

    Of the seed, as in torch, the lowest 32 bits count. Arrays are NumPy's, in the host's memory, filled rows first.
    """

    def __init__(self, seed: int = UNSEEDED) -> None:
        self._bits = np.random.MT19937()
        state: Any = np.random.RandomState(seed % 2**32).get_state(legacy=False)
        self._bits.state = state
        self._kept: float | None = None  # the sine of the last pair of a small normal draw

    def uniform(
        self, shape: int | tuple[int, ...], low: float = 0.0, high: float = 1.0, dtype: Any = np.float32
    ) -> np.ndarray:
        """Numbers of U[low, high) in float32 or float64, as `torch.empty(shape).uniform_(low, high)`."""
        kind = _kind(dtype)
        low, high = float(kind.type(low)), float(kind.type(high))
        u = self._unit(math.prod(np.atleast_1d(shape)), kind)
        return (
            (u * (high - low if kind == np.float64 else float(np.float32(high) - np.float32(low))) + low)
            .astype(kind)
            .reshape(shape)
        )

    def narrow_uniform(self, shape: int | tuple[int, ...], low: float, high: float) -> np.ndarray:
        """Numbers of U[low, high) in torch's bfloat16, held in float32: rounded to it, and low where that gives high."""
        x = narrow(self.uniform(shape, low, high))
        return np.where(x == narrow(np.float32(high)), narrow(np.float32(low)), x)

    def normal(
        self, shape: int | tuple[int, ...], mean: float = 0.0, std: float = 1.0, dtype: Any = np.float32
    ) -> np.ndarray:
        """Numbers of N(mean, std²) in float32 or float64, as `torch.empty(shape).normal_(mean, std)`."""
        kind, n = _kind(dtype), math.prod(np.atleast_1d(shape))
        if n < 16:
            z = np.array([self._one_normal() for _ in range(n)])
            return (z * std + mean).astype(kind).reshape(shape)
        u = self._unit(n, kind).astype(kind)
        z = np.empty(n, kind)
        whole = n - n % 16
        z[:whole] = _box_muller(u[:whole])
        if whole < n:
            z[-16:] = _box_muller(self._unit(16, kind).astype(kind))
        return (z * kind.type(std) + kind.type(mean)).reshape(shape)

    def permutation(self, n: int) -> np.ndarray:
        """(n,) int64: 0 … n − 1 shuffled, as `torch.randperm(n)`. Raises `Bad` if n is negative."""
        if n < 0:
            raise Bad(f"permutation: n must not be negative, found {n}")
        if n >= LARGE:
            return _inside_out(self._u64(n) % np.arange(1, n + 1, dtype=np.uint64))
        if n == 0:
            return np.arange(0)
        left = np.arange(n, 1, -1)
        return _swapped(np.append(n - left + self._bits.random_raw(left.size).astype(np.int64) % left, range(n - 1, n)))

    def _u64(self, n: int) -> np.ndarray:
        high, low = self._bits.random_raw(2 * n).reshape(n, 2).T
        return high << np.uint64(32) | low

    def _unit(self, n: int, kind: np.dtype) -> np.ndarray:
        """(n,) float64 of U[0, 1), with the digits that `kind` can hold."""
        if kind == np.float32:
            return (self._bits.random_raw(n) & np.uint64(2**24 - 1)) * 2.0**-24
        return (self._u64(n) & np.uint64(2**53 - 1)) * 2.0**-53

    def _one_normal(self) -> float:
        if self._kept is not None:
            z, self._kept = self._kept, None
            return z
        v, u = self._unit(2, np.dtype(np.float64)).tolist()
        radius = math.sqrt(-2 * math.log1p(-u))
        self._kept = radius * math.sin(2 * math.pi * v)
        return radius * math.cos(2 * math.pi * v)


@lru_cache(maxsize=4)
def permutation(seed: int | None, n: int) -> np.ndarray:
    """The numbers below n in an order that a seed fixes; without one, the seed of a fresh generator of torch."""
    return TorchGenerator(UNSEEDED if seed is None else seed).permutation(n)


def narrow(x: Any) -> Any:
    """Numbers of float32 rounded to 8 binary digits, half to even: as torch's bfloat16 holds them."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(np.float32)


def _kind(dtype: Any) -> np.dtype:
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise Bad(f"torch's generator: expected dtype float32 or float64, found {kind}")
    return kind


def _box_muller(u: np.ndarray) -> np.ndarray:
    """(16 m,) uniforms -> (16 m,) normals: in each 16, number j pairs with j + 8."""
    u, v = np.moveaxis(u.reshape(-1, 2, 8), 1, 0)
    radius, angle = np.sqrt(-2 * np.log(1 - u)), u.dtype.type(2 * math.pi) * v
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)


def _swapped(partner: np.ndarray) -> np.ndarray:
    """0 … n − 1 after swapping place i with partner[i] ≥ i, for i = 0, 1, …, all at once.

    Place i, final from step i on, gets what lay at its partner j: the last earlier step that chose j put there what had
    lain at its own place, or nobody did and it is j still. `origin[i]` is what lies at place i before step i.
    """
    step = np.arange(partner.size)
    origin = step.copy()
    far = partner > step
    origin[partner[far]] = step[far]  # of several steps the last counts
    origin = _ends(origin)
    before = _previous(partner)
    return np.where(before < 0, partner, origin[before])


def _inside_out(partner: np.ndarray) -> np.ndarray:
    """A list that grew by i = 0, 1, …, each then swapped with place partner[i] ≤ i, all at once.

    What lies at place j at the end is the last step that chose j; or, if none did, what step j moved there from its
    partner: the last earlier step that had chosen that place; or, if none had, what lay there from its own step on.
    """
    partner = partner.astype(np.int64)
    step = np.arange(partner.size)
    before = _previous(partner)
    settled = before >= 0
    moved = _ends(np.where(settled, step, partner))  # the step whose own choice settles it
    out = np.where(settled, before, step)[moved]
    out[partner] = step  # of several steps the last counts
    return out


def _ends(parent: np.ndarray) -> np.ndarray:
    """Where every chain i -> parent[i] -> … ends, by doubling its strides."""
    while not np.array_equal(further := parent[parent], parent):
        parent = further
    return parent


def _previous(x: np.ndarray) -> np.ndarray:
    """For each place the last earlier one with the same value, −1 if there is none."""
    order = np.argsort(x, kind="stable")
    before = np.full(x.size, -1)
    same = x[order[1:]] == x[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    return before
