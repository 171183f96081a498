"""On the host, what treats every row by itself: a few passes over blocks that stay in a core's cache, in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.fast import loops, replaces
from minipeft.engine.fast.blocks import over_rows
from minipeft.engine.fast.layout import heads_last
from minipeft.engine.ops import rows
from minipeft.engine.tensor import Array


@replaces(ops.gelu_tanh, "numpy")
def gelu_tanh(x: Array) -> Any:
    """The slope is formed from x again; nothing but x is kept."""
    c, a = math.sqrt(2 / math.pi), 0.044715
    y = xp.empty(x.shape, x.dtype)
    x2, y2 = rows(x), rows(y)

    def tanh(x: Array) -> Array:
        t = x * x
        t *= c * a
        t += c
        t *= x
        return xp.tanh(t, out=t)

    def forward(at: slice) -> None:
        t = tanh(x2[at])
        t += 1
        t *= x2[at]
        xp.multiply(t, 0.5, out=y2[at])

    over_rows(forward, len(x2), x.nbytes)

    def vjp(g: Array) -> Array:
        gx = xp.empty(x.shape, x.dtype)
        g2, gx2 = rows(g), rows(gx)

        def backward(at: slice) -> None:  # ½ (1 + t) + ½ x (1 − t²) (c + 3 a c x²)
            t = tanh(x2[at])
            slope = xp.multiply(x2[at], x2[at], out=gx2[at])
            slope *= 3 * a * c
            slope += c
            slope *= x2[at]
            slope *= 1 - t * t
            slope += t
            slope += 1
            slope *= 0.5
            slope *= g2[at]

        over_rows(backward, len(x2), x.nbytes)
        return gx

    return y, (vjp,)


@replaces(ops.silu_mul, "numpy")
def silu_mul(x: Array, y: Array) -> Any:
    """The backward pass computes σ(x) again rather than have it kept: it is as large as x."""
    x, y = xp.broadcast_arrays(x, y)
    z = xp.empty(x.shape, x.dtype)
    x2, y2, z2 = rows(x), rows(y), rows(z)

    def forward(at: slice) -> None:
        z = xp.divide(x2[at], _one_plus_exp(x2[at]), out=z2[at])
        z *= y2[at]

    over_rows(forward, len(z2), z.nbytes)

    def vjp(g: Array, wanted: tuple) -> tuple:
        gx, gy = (xp.empty(z.shape, z.dtype) if w else None for w in wanted)
        g2, gx2, gy2 = rows(g), *(None if a is None else rows(a) for a in (gx, gy))

        def backward(at: slice) -> None:
            s = _sigmoid(x2[at])
            xs = x2[at] * s
            if gy2 is not None:
                xp.multiply(g2[at], xs, out=gy2[at])
            if gx2 is not None:  # s (1 + x − x s)
                slope = xp.subtract(x2[at], xs, out=gx2[at])
                slope += 1
                slope *= s
                slope *= y2[at]
                slope *= g2[at]

        over_rows(backward, len(z2), z.nbytes)
        return gx, gy

    return z, vjp


@replaces(ops.layer_norm, "numpy")
def layer_norm(x: Array, w: Array, b: Array, *, eps: float) -> Any:
    """What is kept is the normalised x, and a number a row."""
    xhat, y = xp.empty(x.shape, x.dtype), xp.empty(x.shape, x.dtype)
    x2, xhat2, y2 = rows(x), rows(xhat), rows(y)
    rstd = xp.empty((len(x2), 1), x.dtype)

    def forward(at: slice) -> None:
        hat = xp.subtract(x2[at], x2[at].mean(axis=-1, keepdims=True), out=xhat2[at])
        rstd[at] = 1 / xp.sqrt(_mean_product(hat, hat) + eps)
        hat *= rstd[at]
        xp.multiply(hat, w, out=y2[at])
        y2[at] += b

    over_rows(forward, len(x2), x.nbytes)

    def vjp(g: Array, wanted: tuple) -> tuple:
        g2, gx, gw = rows(g), None, None
        if wanted[0]:
            gx = xp.empty(g.shape, g.dtype)
            gx2 = rows(gx)

            def backward(at: slice) -> None:
                gy = xp.multiply(g2[at], w, out=gx2[at])
                along = _mean_product(gy, xhat2[at])
                gy -= gy.mean(axis=-1, keepdims=True)
                gy -= xhat2[at] * along
                gy *= rstd[at]

            over_rows(backward, len(x2), x.nbytes)
        if wanted[1]:
            gw = g2 * xhat2
        return gx, gw, g2 if wanted[2] else None

    return y, vjp


@replaces(ops.rms_norm, "numpy")
def rms_norm(x: Array, w: Array, *, eps: float) -> Any:
    """What is kept is x, and a number a row."""
    y = xp.empty(x.shape, x.dtype)
    x2, y2 = rows(x), rows(y)
    rstd = xp.empty((len(x2), 1), x.dtype)

    def forward(at: slice) -> None:
        rstd[at] = 1 / xp.sqrt(_mean_product(x2[at], x2[at]) + eps)
        xp.multiply(x2[at], rstd[at], out=y2[at])
        y2[at] *= w

    over_rows(forward, len(x2), x.nbytes)

    def vjp(g: Array, wanted: tuple) -> tuple:
        g2, gx, gw = rows(g), None, None
        if wanted[0]:
            gx = xp.empty(x.shape, x.dtype)
            gx2 = rows(gx)

            def backward(at: slice) -> None:
                gy = xp.multiply(g2[at], w, out=gx2[at])
                along = _mean_product(gy, x2[at])
                along *= rstd[at] * rstd[at]
                gy -= x2[at] * along
                gy *= rstd[at]

            over_rows(backward, len(x2), x.nbytes)
        if wanted[1]:
            gw = g2 * x2
            gw *= rstd
        return gx, gw

    return y, vjp


@replaces(ops.rope, "numpy")
def rope(x: Array, *, cos: Array, sin: Array) -> Any:
    """Whole rows are multiplied, for every head at once; the result lies with the heads last."""
    b, h, t, d = x.shape

    def table(lo: Array, hi: Array) -> Array:  # (·, t, h, d): for every head, so that whole rows are multiplied
        one = xp.swapaxes(xp.concatenate([lo, hi], axis=-1), 1, 2)
        return xp.ascontiguousarray(xp.broadcast_to(one, (len(one), t, h, d)))

    cos2, sin2 = table(cos, cos), table(-sin, sin)

    def rotate(x: Array, by: Callable) -> Array:
        y = heads_last(b, t, h, d, x.dtype)
        rows, made = xp.swapaxes(x, 1, 2), xp.swapaxes(y, 1, 2)

        def part(at: slice) -> None:  # of the positions
            own, y = rows[:, at], made[:, at]
            other = xp.empty(own.shape, own.dtype)  # the halves exchanged
            other[..., : d // 2], other[..., d // 2 :] = own[..., d // 2 :], own[..., : d // 2]
            other *= sin2[:, at]
            by(xp.multiply(own, cos2[:, at], out=y), other, out=y)

        over_rows(part, t, x.nbytes)
        return y

    return rotate(x, xp.add), (lambda g: rotate(g, xp.subtract),)


@replaces(ops.cross_entropy, "numpy")
def cross_entropy(logits: Array, *, labels: Array, ignore: int = -100) -> Any:
    """One number a row is kept; probabilities are formed where their gradient is."""
    V = logits.shape[-1]
    x, y = logits.reshape(-1, V), labels.reshape(-1)
    kept = y != ignore
    outside = kept & ((y < 0) | (y >= V))
    if outside.any():
        raise ValueError(f"labels must lie in 0 … {V - 1} or be {ignore}, found {int(y[outside][0])}")
    n = xp.maximum(kept.sum(), 1).astype(x.dtype)
    rows = xp.arange(len(y))
    y = xp.where(kept, y, 0)
    lse = xp.empty((len(x), 1), x.dtype)
    fused = x.flags.c_contiguous and x.size and loops.single(x)

    def forward(at: slice) -> None:
        if fused:
            loops.kernels().log_sum_exp(x[at], lse[at, 0])
            return
        top = x[at].max(axis=-1, keepdims=True)
        z = x[at] - top
        xp.exp(z, out=z)
        lse[at] = xp.log(z.sum(axis=-1, keepdims=True)) + top

    over_rows(forward, len(x), x.nbytes)
    loss = ((lse[:, 0] - x[rows, y]) * kept).sum() / n

    def vjp(g: Array) -> Array:
        p = xp.empty(x.shape, x.dtype)
        weight = (kept * (g / n))[:, None]

        def backward(at: slice) -> None:
            if fused:
                loops.kernels().exp_scaled(x[at], lse[at, 0], weight[at, 0], p[at])
                p[at][rows[: len(p[at])], y[at]] -= weight[at, 0]
                return
            z = xp.subtract(x[at], lse[at], out=p[at])
            xp.exp(z, out=z)
            z[rows[: len(z)], y[at]] -= 1
            z *= weight[at]

        over_rows(backward, len(x), x.nbytes)
        return p.reshape(logits.shape)

    return xp.asarray(loss, dtype=logits.dtype), (vjp,)


def _one_plus_exp(x: Array) -> Array:
    """1 + e^−x; where that is too large for the dtype it is infinite, and its reciprocal the 0 that it should be."""
    y = xp.asarray(-x)
    with np.errstate(over="ignore"):
        xp.exp(y, out=y)
    y += 1
    return y


def _sigmoid(x: Array) -> Array:
    y = _one_plus_exp(x)
    return xp.divide(1, y, out=y)


def _mean_product(x: Array, y: Array) -> Array:
    """mean(x · y) over the last axis, kept with length 1."""
    return (np.vecdot(x, y) / x.shape[-1])[..., None]
