"""torch's CPU generator in NumPy, for frozen parts that other libraries rebuild from a seed instead of storing them.

The stream is the 32-bit Mersenne Twister seeded with one integer. Uniforms and permutations equal torch's bit for bit, normals
to the last places of float32's logarithm and cosine. Found by comparison with torch 2.13; the tests hold recorded values.
"""

from __future__ import annotations

import math

import numpy as np

DEFAULT_SEED = 67280421310721  # of a torch.Generator that was never seeded


class TorchGenerator:
    """`torch.Generator().manual_seed(seed)`: each call continues the stream."""

    def __init__(self, seed: int = DEFAULT_SEED) -> None:
        self._state = np.random.RandomState(seed & 0xFFFFFFFF)
        self._spare: float | None = None  # the second normal of a pair, kept for the next call

    def _words(self, n: int) -> np.ndarray:
        """The next n 32-bit words."""
        return self._state._bit_generator.random_raw(n).astype(np.uint64)  # type: ignore[attr-defined]

    def _unit(self, n: int) -> np.ndarray:
        """n float32 uniforms on [0, 1): 24 bits of one word each."""
        return ((self._words(n) & np.uint64(0xFFFFFF)).astype(np.float64) * 2.0**-24).astype(np.float32)

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """float32 uniforms on [low, high), as `tensor.uniform_(low, high, generator=…)` draws them."""
        lo, hi = np.float32(low), np.float32(high)
        u = self._unit(math.prod(shape)).astype(np.float64)
        return (u * float(hi - lo) + float(lo)).astype(np.float32).reshape(shape)

    def permutation(self, n: int) -> np.ndarray:
        """`torch.randperm(n, generator=…)`, int64: swap entry i with entry i + word mod (n − i), for i = 0 … n−2."""
        jumps = (self._words(max(n - 1, 0)) % np.arange(n, 1, -1, dtype=np.uint64)).tolist()
        order = list(range(n))
        for i, z in enumerate(jumps):
            j = i + z
            order[i], order[j] = order[j], order[i]
        return np.array(order, np.int64)

    def normal(self, shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> np.ndarray:
        """float32 normals, by Box and Muller's method as `torch.randn` applies it.

        From 16 numbers on: uniforms fill the array, and every 16 of them become 8 cosines and 8 sines; a last part that is
        no full 16 is drawn afresh with the 15 or fewer before it. Below 16: pairs of doubles, the second one kept.
        """
        n = math.prod(shape)
        if n < 16:
            z = np.array([self._one() for _ in range(n)], np.float64)
            return (z * std + mean).astype(np.float32).reshape(shape)
        out = self._unit(n)
        full = n - n % 16
        out[:full] = self._blocks(out[:full])
        if n % 16:
            out[n - 16 :] = self._blocks(self._unit(16))
        return (out * np.float32(std) + np.float32(mean)).reshape(shape)

    @staticmethod
    def _blocks(u: np.ndarray) -> np.ndarray:
        v = u.reshape(-1, 2, 8)
        radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - v[:, 0]))
        angle = np.float32(2 * math.pi) * v[:, 1]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)

    def _double(self) -> float:
        high, low = (int(w) for w in self._words(2))
        return ((high << 32 | low) & ((1 << 53) - 1)) * 2.0**-53

    def _one(self) -> float:
        if self._spare is not None:
            z, self._spare = self._spare, None
            return z
        u1, u2 = self._double(), self._double()
        radius, angle = math.sqrt(-2 * math.log1p(-u2)), 2 * math.pi * u1
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)
