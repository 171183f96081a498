"""On a GPU, products that are at most 64 wide on one side, in float32: each goes once over the wide matrix (lowrank.cu)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from minipeft.engine.backend import xp
from minipeft.engine.fast.cuda_blas import product
from minipeft.engine.fast.cuda_kernels import aligned, number, on_tensor_cores
from minipeft.engine.tensor import Array

MOST = 64  # of a rank
BLOCKS = 264  # of a kernel, so that every multiprocessor has some
CACHE = 32 << 20  # bytes of a result that are more than what lies in the cache when they are read again


@dataclass(frozen=True)
class Made:
    """A matrix that a product may make where it needs it: `by`, a C expression of x and y (n, k), of w and b (k), m and s (n)."""

    by: str
    make: Callable[[], Array]
    x: Array
    y: Array | None = None
    w: Array | None = None
    b: Array | None = None
    m: Array | None = None
    s: Array | None = None

    def __call__(self) -> Array:
        return self.make()


def _suits(r: int, *arrays: Array) -> bool:
    return 0 < r <= MOST and all(a.dtype.name == "float32" and a.size for a in arrays)


def _dense(x: Array) -> Array:
    return x if x.strides[-1] == x.itemsize else xp.ascontiguousarray(x)


def _step(x: Array) -> int:
    return x.strides[0] // x.itemsize


def _start(name: str, r: int, grid: tuple, args: tuple, wide: list[Array], made: str = "x", shared: int = 0) -> None:
    uses = {f"WITH_{k}": 1 for k in "ywbms" if re.search(rf"\b{k}\b", made)}
    macros = dict(RANK=8 * -(-r // 8), PRODUCTS=3, VEC=int(aligned(*wide)), T="float", MADE=f"({made})", **uses)
    on_tensor_cores("lowrank", name, shared, **macros)(grid, (256,), args, shared_mem=shared)


def narrow(x: Array, M: Array, alpha: float = 1.0) -> Array:
    """alpha x Mᵀ (n, r), for x (n, k) and M (r, k)."""
    (n, k), r = x.shape, len(M)
    if not _suits(r, x, M):
        return product(x, M.T, alpha=alpha)
    x, h = _dense(x), xp.empty((n, r), x.dtype)
    steps = [step // M.itemsize for step in M.strides]
    args = (x, _step(x), M, *steps, h, n, k, r, number(x, alpha))
    _start("lowrank_narrow", r, (-(-n // 16),), args, [x, M] if steps[1] == 1 else [x])
    return h


def widen(h: Array, M: Array, out: Array, y: Array | None = None, b: Array | None = None) -> Array:
    """out = y + h Mᵀ + b, for h (n, r), M (k, r), y (n, k), which may be out, and b (k)."""
    (n, r), k = h.shape, len(M)
    if not _suits(r, h, M, out):
        if y is not out:
            out[...] = 0 if y is None else y
        product(h, M.T, out=out, beta=1.0)
        if b is not None:
            out += b
        return out
    y = None if y is None else _dense(y)
    wide = [a for a in (y, b, out) if a is not None]
    given = (0, 0) if y is None else (y, _step(y))
    steps = (step // M.itemsize for step in M.strides)
    args = (*given, xp.ascontiguousarray(h), M, *steps, 0 if b is None else b, out, _step(out), n, k, r)
    _start("lowrank_widen", r, (-(-n // 64), -(-k // 128)), args, wide)
    return out


def gather(h: Array, x: Array | Made, turned: bool = False) -> Array:
    """hᵀ x (r, k), or its transpose (k, r) in rows, for h (n, r) and x (n, k), which is perhaps made only here."""
    made = x if isinstance(x, Made) else Made("x", lambda: x, x)
    (n, r), k = h.shape, made.x.shape[-1]
    if not _suits(r, h, *(a for a in (made.x, made.y, made.w, made.b) if a is not None)):
        x = made().reshape(n, k)
        return product(x.T, h) if turned else product(h.T, x)
    h, wide = xp.ascontiguousarray(h), _dense(made.x.reshape(n, k))
    beside = [0 if a is None else a for a in (made.y, made.w, made.m, made.s, made.b)]
    columns = -(-k // 256)
    each = 32 * -(-n // (32 * max(1, min(BLOCKS // columns, n // 32))))
    parts = -(-n // each)
    out = xp.empty((k, r) if turned else (r, k), h.dtype)
    to = out if parts == 1 else xp.empty((parts, *out.shape), h.dtype)
    args = (h, wide, _step(wide), *beside, to, n, k, r, each, r * k, *((1, r) if turned else (k, 1)))
    rows = [a for a in (wide, made.y, made.w, made.b) if a is not None]
    _start("lowrank_gather", r, (columns, parts), args, rows, made.by)
    if parts > 1:
        _summed(r, (to, out, 1.0), None, rows, made.by)
    return out


def _summed(r: int, one: tuple, other: tuple | None, wide: list[Array], made: str = "x") -> None:
    """Add up parts, (parts, out, factor) and perhaps (parts, out)."""
    parts, out, by = one
    more = (0, 0, 0, 0) if other is None else (*other, other[1].size, len(other[0]))
    blocks = -(-out.size // 32) + -(-more[2] // 32)
    _start("lowrank_sum", r, (blocks,), (parts, out, out.size, len(parts), number(out, by), *more), wide, made)


def both(x: Array, M: Array, h: Array, alpha: float) -> tuple[Array, Array]:
    """alpha x M (n, r) and xᵀ h (k, r), for x (n, k), M (k, r) and h (n, r), in one pass over x."""
    (n, k), r = x.shape, M.shape[1]
    if not _suits(r, x, M, h) or r > 16:
        return narrow(x, M.T, alpha), gather(h, x, turned=True)
    x, M, h = _dense(x), *(xp.ascontiguousarray(a) for a in (M, h))
    rows, columns = -(-n // 128), 128 * -(-k // (128 * min(-(-BLOCKS // -(-n // 128)), -(-k // 128))))
    parts = -(-k // columns)
    xM, xh = xp.empty((n, r), x.dtype), xp.empty((k, r), x.dtype)
    xMs, xhs = xp.empty((parts, n, r), x.dtype), xp.empty((rows, k, r), x.dtype)
    args = (x, _step(x), M, h, xMs, xhs, n, k, r, columns)
    _start("lowrank_both", r, (rows, parts), args, [x], shared=4 * 4 * 32 * (128 + 4))
    _summed(r, (xMs, xM, alpha), (xhs, xh), [x])
    return xM, xh


def joined(x: Array, W: Array, h: Array, M: Array) -> Array | None:
    """x Wᵀ + h Mᵀ as one product of longer rows, where that moves less than to add the second (n, m) to the first; else None.

    For x (n, k), W (m, k), h (n, r) and M (m, r); of W and M either axis may be dense.
    """
    (n, k), m, r = x.shape, len(W), h.shape[1]
    if n * k + 2 * m * k > n * m or 4 * n * m < CACHE or k % 4 or not _suits(r, x, W, h, M):
        return None
    x, more = _dense(x), 4 * -(-r // 4)
    if M.strides[0] == M.itemsize and W.strides[0] == W.itemsize:  # their transposes, one under the other
        long = xp.empty((k + more, m), x.dtype)
        long[:k], long[k : k + r], long[k + r :] = W.T, M.T, 0
        return product(_beside(x, h, more), long)
    return product(_beside(x, h, more), _beside(W, M, more).T)


def _beside(x: Array, h: Array, more: int) -> Array:
    """x (n, k) with h (n, r) beside it, and zeros up to k + more."""
    (n, k), r = x.shape, h.shape[1]
    x, out = _dense(x), xp.empty((n, k + more), x.dtype)
    args = (x, _step(x), xp.ascontiguousarray(h), out, n, k, r, more)
    _start("lowrank_beside", r, (min(65535, -(-n * (k + more) // 1024)),), args, [x, out])
    return out
