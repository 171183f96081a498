"""On the host, by loops that Numba compiles, where it is installed: float32, and not too few numbers."""

from __future__ import annotations

import math
from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.fast import host, replaces
from minipeft.engine.fast.blocks import over_rows
from minipeft.engine.fast.layout import heads_last
from minipeft.engine.fast.loops import kernels, single
from minipeft.engine.ops import rows
from minipeft.engine.tensor import Array

__all__ = ["host"]  # whose replacements are registered before these


def _dense(x: Array) -> Array:
    """x, copied if its numbers do not lie behind one another, rows first."""
    return x if x.flags.c_contiguous else x.copy()


def _flat(x: Array) -> Array:
    """x, whose numbers lie behind one another, as a vector."""
    return x.reshape(-1)


@replaces(ops.silu_mul, "numpy", when=single)
def silu_mul(x: Array, y: Array) -> Any:
    x, y = map(_dense, xp.broadcast_arrays(x, y))
    z, call = xp.empty(x.shape, x.dtype), kernels()
    x2, y2, z2 = rows(x), rows(y), rows(z)
    over_rows(lambda at: call.silu_mul(*map(_flat, (x2[at], y2[at], z2[at]))), len(z2), z.nbytes)

    def vjp(g: Array, wanted: tuple) -> tuple:
        gx, gy, g = xp.empty(z.shape, z.dtype), xp.empty(z.shape, z.dtype), _dense(g)
        every = x2, y2, *map(rows, (g, gx, gy))
        over_rows(lambda at: call.silu_mul_back(*[_flat(a[at]) for a in every]), len(z2), z.nbytes)
        return gx, gy

    return z, vjp


@replaces(ops.rms_norm, "numpy", when=single)
def rms_norm(x: Array, w: Array, *, eps: float) -> Any:
    x2, w = _dense(rows(x)), _dense(w)
    y, r, call = xp.empty(x.shape, x.dtype), xp.empty(len(x2), x.dtype), kernels()
    y2 = rows(y)
    over_rows(lambda at: call.rms_norm(x2[at], w, eps, y2[at], r[at]), len(x2), x.nbytes)

    def vjp(g: Array, wanted: tuple) -> tuple:
        g2, gx, gw = _dense(rows(g)), None, None
        if wanted[0]:
            gx = xp.empty(g.shape, g.dtype)
            gx2 = rows(gx)
            over_rows(lambda at: call.rms_norm_back(x2[at], w, r[at], g2[at], gx2[at]), len(x2), x.nbytes)
        if wanted[1]:
            gw = g2 * x2
            gw *= r[:, None]
        return gx, gw

    return y, vjp


@replaces(ops.rope, "numpy", when=single)
def rope(x: Array, *, cos: Array, sin: Array) -> Any:
    """The result lies with the heads last."""
    b, h, t, d = x.shape
    tables = [_dense(a.reshape(-1, d // 2)) for a in (cos, sin)]

    def turned(x: Array, sign: float) -> Array:
        y = heads_last(b, t, h, d, x.dtype)
        x3, y3 = (_dense(xp.swapaxes(a, 1, 2)).reshape(b * t, h, d) for a in (x, y))
        over_rows(lambda at: kernels().rope(x3[at], *tables, sign, at.start, y3[at]), b * t, x.nbytes)
        return y

    return turned(x, 1.0), (lambda g: turned(g, -1.0),)


def adamw(x: Array, g: Array, m: Array, v: Array, t: int, lr: float, o: Any) -> tuple[Array, Array, Array]:
    """Vectors after step t of AdamW with the settings `o`, and both moments: `minipeft.train.fast` has it beside NumPy's."""
    after = xp.empty(x.shape, x.dtype), xp.empty(x.shape, x.dtype), xp.empty(x.shape, x.dtype)
    fix1, fix2 = 1 - o.beta1**t, math.sqrt(1 - o.beta2**t)
    kernels().adamw(x, g, m, v, o.beta1, o.beta2, o.eps, 1 - lr * o.weight_decay, -lr / fix1, fix2, *after)
    return after
