"""On the host, products: shared out among threads, thin ones in stacks, low ranks added where the result lies."""

from __future__ import annotations

import math
from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.fast import replaces
from minipeft.engine.fast.blocks import over_products, pieces, thin
from minipeft.engine.fast.layout import in_blocks
from minipeft.engine.ops import operands, rows
from minipeft.engine.tensor import Array

CHANGED = 512  # rows of a changed W that are held at once


@replaces(ops.matmul, "numpy")
def matmul(x: Array, y: Array) -> Any:
    """One product where y is one matrix, not one for each batch row."""
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(f"matmul needs matrices, not shapes {x.shape} and {y.shape}")

    def vjp_y(g: Array) -> Array:
        if y.ndim == 2:
            return _product(rows(x).T, rows(g))
        return _product(xp.swapaxes(x, -1, -2), g)

    if y.ndim == 2 and x.ndim > 2:  # one product, not one for each batch row
        z = _product(rows(x), y).reshape(*x.shape[:-1], y.shape[-1])
    else:
        z = _product(x, y)
    return z, (lambda g: _product(g, xp.swapaxes(y, -1, -2)), vjp_y)


@replaces(ops.linear, "numpy")
def linear(x: Array, W: Array, b: Array | None = None) -> Any:
    """Shared out among threads. x is kept for W's gradient alone."""
    x2, V = operands(rows(x), W)
    y = _product(x2, V.T)
    if b is not None:
        y += b
    shape = x.shape  # x itself is kept for W's gradient alone

    def vjp_x(g: Array) -> Array:
        return _product(*operands(rows(g), W)).reshape(shape)

    def vjp_W(g: Array) -> Array:
        return _product(rows(g).T, x2)

    vjps = (vjp_x, vjp_W, (lambda g: g) if b is not None else None)
    return y.reshape(*shape[:-1], len(W)), vjps


@replaces(ops.linear_lowrank, "numpy")
def linear_lowrank(x: Array, W: Array, A: Array, B: Array, b: Array | None = None, *, s: float) -> Any:
    """Written to y and to x's gradient in place.

    Where x has few rows it is x Wᵀ + s (x Aᵀ) Bᵀ + b. Where it has many, W is less to change than y: W + s B A is formed, some
    rows at a time, and never kept. Over a W in bfloat16 what the low rank adds is not rounded, so it is added to y.
    """
    x2 = rows(x)
    xV, V = operands(x2, W)
    (n, in_), out, flops = x2.shape, len(W), 2 * len(W) * x2.size
    y = xp.empty((n, out), x.dtype)
    h: Any = xp.empty((n, len(A)), x.dtype) if V is not W or n * (in_ + out) < in_ * out else None
    sA = s * A

    def changing_y(at: slice) -> None:
        h[at] = _narrow(x2[at], sA.T)
        xp.matmul(xV[at], V.T, out=y[at])
        _add_narrow(y[at], h[at], B.T)

    def changing_W(of: slice) -> None:
        for at in pieces(of, CHANGED):
            changed = B[at] @ sA
            changed += W[at]
            xp.matmul(x2, changed.T, out=y[:, at])

    if h is None:
        over_products(changing_W, out, flops)
    else:
        over_products(changing_y, n, flops)
    if b is not None:
        y += b

    def vjp(g: Array, wanted: tuple) -> tuple:
        g2 = rows(g)
        gx = xp.empty(x2.shape, x.dtype) if wanted[0] else None
        gV, V = operands(g2, W) if wanted[0] else (g2, W)
        parts: dict[int, tuple] = {}  # gradients of A and B of each block of rows, by the first

        def backward(at: slice) -> None:
            own = _narrow(x2[at], sA.T) if h is None else h[at]
            gh, parts[at.start] = _lowrank_grads(g2[at], x2[at], own, B, s, wanted[2:4])
            if gx is not None:
                xp.matmul(gV[at], V, out=gx[at])
                _add_narrow(gx[at], gh, A)

        over_products(backward, n, flops)
        gW = _product(g2.T, x2) if wanted[1] else None
        gb = g if b is not None and wanted[4] else None
        return None if gx is None else gx.reshape(x.shape), gW, *_added(parts), gb

    return y.reshape(*x.shape[:-1], out), vjp


@replaces(ops.add_lowrank, "numpy")
def add_lowrank(y: Array, x: Array, A: Array, B: Array, *, s: float) -> Any:
    """Thin products in pieces, added where y lies."""
    x2, z = rows(x), rows(y).copy()
    h, sA = xp.empty((len(x2), len(A)), x.dtype), s * A
    flops = 2 * len(A) * (x2.size + z.size)

    def forward(at: slice) -> None:
        h[at] = _narrow(x2[at], sA.T)
        _add_narrow(z[at], h[at], B.T)

    over_products(forward, len(x2), flops)

    def vjp(g: Array, wanted: tuple) -> tuple:
        g2 = rows(g)
        gx = xp.empty(x2.shape, x.dtype) if wanted[1] else None
        parts: dict[int, tuple] = {}

        def backward(at: slice) -> None:
            gh, parts[at.start] = _lowrank_grads(g2[at], x2[at], h[at], B, s, wanted[2:4])
            if gx is not None:
                xp.matmul(gh, A, out=gx[at])

        over_products(backward, len(x2), 2 * flops)
        return g if wanted[0] else None, None if gx is None else gx.reshape(x.shape), *_added(parts)

    return z.reshape(y.shape), vjp


@replaces(ops.block_matmul, "numpy")
def block_matmul(x: Array, R: Array) -> Any:
    """Each product is written where it belongs: nothing is copied to bring the blocks together."""
    beta, gamma = R.shape[1:]
    K, n, one = x.shape[-1] // beta, math.prod(x.shape[:-1]), len(R) == 1
    flops = 2 * x.size * gamma
    y = xp.empty((n, K * gamma), x.dtype)
    x3, y3 = in_blocks(x, K, one), in_blocks(y, K, one)
    over_products(lambda at: xp.matmul(x3[:, at], R, out=y3[:, at]), x3.shape[1], flops)

    def vjp(g: Array, wanted: tuple) -> tuple:
        gx = xp.empty((n, K * beta), x.dtype) if wanted[0] else None
        g3, gx3 = in_blocks(g, K, one), None if gx is None else in_blocks(gx, K, one)
        parts: dict[int, tuple] = {}

        def backward(at: slice) -> None:
            if gx3 is not None:
                xp.matmul(g3[:, at], xp.swapaxes(R, -1, -2), out=gx3[:, at])
            parts[at.start] = (xp.swapaxes(x3[:, at], -1, -2) @ g3[:, at] if wanted[1] else None,)

        over_products(backward, g3.shape[1], 2 * flops)
        return None if gx is None else gx.reshape(x.shape), *_added(parts)

    return y.reshape(*x.shape[:-1], K * gamma), vjp


def _product(x: Array, y: Array) -> Array:
    """x @ y, shared out among threads: over the matrices of a stack, else over the larger of both factors."""
    if x.ndim != y.ndim or x.shape[:-2] != y.shape[:-2]:
        return x @ y
    z, flops = xp.empty((*x.shape[:-1], y.shape[-1]), xp.result_type(x, y)), 2 * x.size * y.shape[-1]
    if x.ndim > 2:
        over_products(lambda at: xp.matmul(x[at], y[at], out=z[at]), len(x), flops)
    elif x.size >= y.size:
        over_products(lambda at: xp.matmul(x[at], y, out=z[at]), len(x), flops)
    else:
        over_products(lambda at: xp.matmul(x, y[:, at], out=z[:, at]), y.shape[1], flops)
    return z


def _narrow(x: Array, M: Array) -> Array:
    """x @ M for x (n, m) and M (m, r) of few columns, in a stack of thin products."""
    n, (m, r) = len(x), M.shape
    count = thin(n, M.size)
    return (x.reshape(count, n // count, m) @ M).reshape(n, r)


def _narrow_transposed(h: Array, x: Array) -> Array:
    """hᵀ x for h (n, r) of few columns and x (n, m), likewise."""
    n, count = len(x), thin(len(x), h.shape[1] * x.shape[1])
    h, x = (a.reshape(count, n // count, a.shape[1]) for a in (h, x))
    each = xp.swapaxes(h, -1, -2) @ x
    return each[0] if count == 1 else each.sum(axis=0)


def _add_narrow(y: Array, h: Array, M: Array) -> None:
    """y += h @ M in place for h (n, r) of few columns, by pieces that stay in the cache."""
    for at in pieces(slice(0, len(y)), max(1, len(y) // thin(len(y), M.size))):
        y[at] += h[at] @ M


def _lowrank_grads(g: Array, x: Array, h: Array, B: Array, s: float, wanted: tuple) -> tuple:
    """The gradient of h/s = x Aᵀ, and of A and B those that are wanted, in y = h Bᵀ, for the gradient g of y."""
    gh = _narrow(g, s * B)
    gA = _narrow_transposed(gh, x) if wanted[0] else None
    gB = _narrow_transposed(h, g).T if wanted[1] else None
    return gh, (gA, gB)


def _added(parts: dict[int, tuple]) -> tuple:
    """The sums of the parts' entries, in the order of the blocks whichever came first."""
    first, *rest = (parts[i] for i in sorted(parts))
    for more in rest:
        for total, part in zip(first, more, strict=True):
            if total is not None:
                total += part
    return first
