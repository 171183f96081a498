"""Loops over numbers and rows in float32, compiled by Numba: one pass over memory where NumPy makes one for each operation.

What is NaN or infinite stays so. Sums of a row are added up in another order than NumPy's. They hold no interpreter: blocks of rows run
at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

f32 = np.float32
MATHS = {"contract", "reassoc", "nsz"}  # sums in any order, products and sums in one; nothing is supposed to be finite


def compiled(*arguments: Any) -> Callable:
    """Compile the function below for these arguments, now or at an earlier time: the machine's code is kept beside this file, or where
    Numba finds a place for it."""

    def of(f: Callable) -> Any:
        how: dict[str, Any] = dict(nogil=True, fastmath=MATHS, error_model="numpy")
        try:
            return njit(types.void(*arguments), cache=True, **how)(f)
        except RuntimeError:  # there is no place
            return njit(types.void(*arguments), **how)(f)

    return of


def _read(ndim: int) -> Any:
    return types.Array(types.float32, ndim, "C", readonly=True)


one, two, three = (types.float32[::1], types.float32[:, ::1], types.float32[:, :, ::1])
number = types.float32


@intrinsic
def _float_of(context: Any, bits: Any) -> Any:
    """The float32 of these 32 bits."""
    return types.float32(types.int32), lambda c, builder, signature, args: builder.bitcast(args[0], ir.FloatType())


@njit(inline="always", fastmath=MATHS)
def _exp(x: Any) -> Any:
    """e^x to 2 units in the last place; 0 where that is no normal number. With x = n ln 2 + r: 2ⁿ, and eʳ by its series' near relative
    for |r| ≤ ½ ln 2 (Cody & Waite 1980, chapter 6; the coefficients are those of Cephes' expf)."""
    y = f32(88.72283) if x > f32(88.72283) else x
    y = f32(-87.33654) if y < f32(-87.33654) else y
    n = np.floor(y * f32(1.44269504) + f32(0.5))
    r = y - n * f32(0.693359375) + n * f32(2.12194440e-4)
    p = f32(1.9875691500e-4) * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * r * r + r + f32(1)
    half = types.int32(n) >> types.int32(1)  # 2ⁿ in two steps: 2¹²⁸ is none of its type
    rest = types.int32(n) - half
    p = p * _float_of((half + types.int32(127)) << types.int32(23))
    p = p * _float_of((rest + types.int32(127)) << types.int32(23))
    p = f32(np.inf) if x > f32(88.72283) else p
    return f32(0) if x < f32(-87.33654) else p


@compiled(_read(1), _read(1), one)
def silu_mul(x: Any, y: Any, z: Any) -> None:
    """z = x σ(x) y."""
    for i in range(x.size):
        z[i] = x[i] / (f32(1) + _exp(-x[i])) * y[i]


@compiled(_read(1), _read(1), _read(1), one, one)
def silu_mul_back(x: Any, y: Any, g: Any, gx: Any, gy: Any) -> None:
    """The gradients of x and y."""
    for i in range(x.size):
        e = _exp(-x[i])
        s = f32(1) / (f32(1) + e)
        rest = e * s if e < f32(1) else f32(1) - s  # 1 − σ(x), where σ(x) is near 1 too
        gy[i] = g[i] * x[i] * s
        gx[i] = g[i] * y[i] * s * (f32(1) + x[i] * rest)


@compiled(_read(2), _read(1), number, two, one)
def rms_norm(x: Any, w: Any, eps: Any, y: Any, r: Any) -> None:
    """y = w x r for each row, r = 1/√(mean x² + ε)."""
    n = x.shape[1]
    for i in range(x.shape[0]):
        total = f32(0)
        for j in range(n):
            total += x[i, j] * x[i, j]
        q = f32(1) / np.sqrt(total / f32(n) + eps)
        r[i] = q
        for j in range(n):
            y[i, j] = x[i, j] * q * w[j]


@compiled(_read(2), _read(1), _read(1), _read(2), two)
def rms_norm_back(x: Any, w: Any, r: Any, g: Any, gx: Any) -> None:
    """The gradient of x."""
    n = x.shape[1]
    for i in range(x.shape[0]):
        total, q = f32(0), r[i]
        for j in range(n):
            total += g[i, j] * w[j] * x[i, j]
        along = total / f32(n) * q * q
        for j in range(n):
            gx[i, j] = (g[i, j] * w[j] - x[i, j] * along) * q


@compiled(_read(3), _read(2), _read(2), number, types.int64, three)
def rope(x: Any, cos: Any, sin: Any, sign: Any, start: Any, y: Any) -> None:
    """Rows (·, heads, d) of positions from `start` on turned by the angles of tables that repeat, the other way for a sign of −1."""
    half = x.shape[2] // 2
    for i in range(x.shape[0]):
        at = (start + i) % cos.shape[0]
        for h in range(x.shape[1]):
            for j in range(half):
                lo, hi, s = x[i, h, j], x[i, h, j + half], sin[at, j] * sign
                y[i, h, j] = lo * cos[at, j] - hi * s
                y[i, h, j + half] = hi * cos[at, j] + lo * s


@compiled(three, _read(3), types.int64, two, two, types.boolean)
def softmax(p: Any, mask: Any, each: Any, top: Any, total: Any, known: Any) -> None:
    """Scores p (·, keys, queries), to which a mask of every `each` of them is added, become weights: e^(p − top) / total for each query.

    top and total, (·, queries), are its largest score and the sum of its exponentials, unless they are known. An empty mask is none.
    """
    keys, queries = p.shape[1:]
    for i in range(p.shape[0]):
        if len(mask):
            at = i // each % len(mask)
            for k in range(keys):
                for q in range(queries):
                    p[i, k, q] += mask[at, k, q]
        if not known:
            for q in range(queries):
                top[i, q], total[i, q] = p[i, 0, q], f32(0)
            for k in range(1, keys):
                for q in range(queries):
                    x = p[i, k, q]
                    top[i, q] = x if x > top[i, q] else top[i, q]
        for k in range(keys):
            for q in range(queries):
                p[i, k, q] = _exp(p[i, k, q] - top[i, q])
        if not known:
            for k in range(keys):
                for q in range(queries):
                    total[i, q] += p[i, k, q]
        for k in range(keys):
            for q in range(queries):
                p[i, k, q] /= total[i, q]


@compiled(three, _read(3), _read(2))
def softmax_back(g: Any, p: Any, along: Any) -> None:
    """The gradient g of weights p becomes that of their scores, (g − along) p, where along is Σ g p of each query."""
    for i in range(g.shape[0]):
        for k in range(g.shape[1]):
            for q in range(g.shape[2]):
                g[i, k, q] = (g[i, k, q] - along[i, q]) * p[i, k, q]


@compiled(_read(2), one)
def log_sum_exp(x: Any, out: Any) -> None:
    """log Σ eˣ of each row."""
    for i in range(x.shape[0]):
        top, total = x[i, 0], f32(0)
        for j in range(1, x.shape[1]):
            top = x[i, j] if x[i, j] > top else top
        for j in range(x.shape[1]):
            total += _exp(x[i, j] - top)
        out[i] = np.log(total) + top


@compiled(_read(2), _read(1), _read(1), two)
def exp_scaled(x: Any, less: Any, by: Any, out: Any) -> None:
    """e^(x − less) by, for each row."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = _exp(x[i, j] - less[i]) * by[i]


@compiled(*[_read(1)] * 4, *[number] * 6, one, one, one)
def adamw(
    x: Any,
    g: Any,
    m: Any,
    v: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    keep: Any,
    by: Any,
    fix: Any,
    x1: Any,
    m1: Any,
    v1: Any,
) -> None:
    """x₁ = keep x + by m₁ / (√v₁ / fix + ε), with both moments after the step."""
    for i in range(x.size):
        first = beta1 * m[i] + (f32(1) - beta1) * g[i]
        second = beta2 * v[i] + (f32(1) - beta2) * (g[i] * g[i])
        m1[i], v1[i] = first, second
        x1[i] = keep * x[i] + by * (first / (np.sqrt(second) / fix + eps))
