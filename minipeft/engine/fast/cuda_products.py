"""On a GPU, products by cuBLAS: beside a base in bfloat16 of the bits of both, low ranks added where the result lies."""

from __future__ import annotations

from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.bfloat16 import Bfloat16
from minipeft.engine.fast import replaces
from minipeft.engine.fast.cuda_blas import product
from minipeft.engine.fast.cuda_kernels import spread
from minipeft.engine.fast.layout import in_blocks
from minipeft.engine.ops import operands, rows
from minipeft.engine.tensor import Array


def factors(x: Array, W: Any) -> tuple[Array, Array]:
    """x and W as they meet in `product`: beside a W held in bfloat16 the bits of both."""
    if type(W) is not Bfloat16 or x.dtype != W.dtype:
        return operands(x, W)
    x = xp.ascontiguousarray(x)
    x = x.copy() if x.data.ptr % 16 else x
    bits = xp.empty(x.shape, xp.uint16)
    spread("to_bfloat16", x, -(-x.size // 4), (x, bits, x.size))
    return bits, W.values


@replaces(ops.linear, "cupy")
def linear(x: Array, W: Any, b: Array | None = None) -> Any:
    x2, V = factors(rows(x), W)
    y = product(x2, V.T)
    if b is not None:
        y += b
    shape = x.shape
    vjps = (
        lambda g: product(*factors(rows(g), W)).reshape(shape),
        lambda g: product(rows(g).T, x2),
        (lambda g: g) if b is not None else None,
    )
    return y.reshape(*shape[:-1], len(W)), vjps


@replaces(ops.matmul, "cupy")
def matmul(x: Array, y: Array) -> Any:
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(f"matmul needs matrices, not shapes {x.shape} and {y.shape}")

    def vjp_y(g: Array) -> Array:
        return product(rows(x).T, rows(g)) if y.ndim == 2 else product(xp.swapaxes(x, -1, -2), g)

    z = product(rows(x), y).reshape(*x.shape[:-1], y.shape[-1]) if y.ndim == 2 else product(x, y)
    return z, (lambda g: product(g, xp.swapaxes(y, -1, -2)), vjp_y)


@replaces(ops.linear_lowrank, "cupy")
def linear_lowrank(x: Array, W: Any, A: Array, B: Array, b: Array | None = None, *, s: float) -> Any:
    x2 = rows(x)
    xV, V = factors(x2, W)
    y = product(xV, V.T)
    h = product(x2, A.T, alpha=s)
    product(h, B.T, out=y, beta=1.0)
    if b is not None:
        y += b

    def vjp(g: Array, wanted: tuple) -> tuple:
        g2 = rows(g)
        gx = product(*factors(g2, W)) if wanted[0] else None
        gA, gB = _lowrank_grads(g2, gx, x2, h, A, B, s, wanted[2], wanted[3])
        gW = product(g2.T, x2) if wanted[1] else None
        return None if gx is None else gx.reshape(x.shape), gW, gA, gB, g if b is not None and wanted[4] else None

    return y.reshape(*x.shape[:-1], len(W)), vjp


@replaces(ops.add_lowrank, "cupy")
def add_lowrank(y: Array, x: Array, A: Array, B: Array, *, s: float) -> Any:
    x2, z = rows(x), rows(y).copy()
    h = product(x2, A.T, alpha=s)
    product(h, B.T, out=z, beta=1.0)

    def vjp(g: Array, wanted: tuple) -> tuple:
        gx = xp.zeros(x2.shape, x.dtype) if wanted[1] else None
        gA, gB = _lowrank_grads(rows(g), gx, x2, h, A, B, s, wanted[2], wanted[3])
        return g if wanted[0] else None, None if gx is None else gx.reshape(x.shape), gA, gB

    return z.reshape(y.shape), vjp


def _lowrank_grads(
    g: Array, gx: Array | None, x: Array, h: Array, A: Array, B: Array, s: float, want_A: bool, want_B: bool
) -> tuple:
    gA = gB = None
    if gx is not None or want_A:
        gh = product(g, B, alpha=s)
        if gx is not None:
            product(gh, A, out=gx, beta=1.0)
        if want_A:
            gA = product(gh.T, x)
    if want_B:
        gB = product(g.T, h)
    return gA, gB


@replaces(ops.block_matmul, "cupy")
def block_matmul(x: Array, R: Array) -> Any:
    K, one = x.shape[-1] // R.shape[1], len(R) == 1

    def placed(x: Array, R: Array) -> Array:
        y = xp.empty((*x.shape[:-1], K * R.shape[2]), x.dtype)
        product(in_blocks(x, K, one), R, out=in_blocks(y, K, one))
        return y

    vjps = (
        lambda g: placed(g, xp.swapaxes(R, -1, -2)),
        lambda g: product(xp.swapaxes(in_blocks(x, K, one), -1, -2), in_blocks(g, K, one)),
    )
    return placed(x, R), vjps
