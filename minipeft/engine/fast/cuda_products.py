"""On a GPU, products by cuBLAS: beside a base in bfloat16 of the bits of both, low ranks added where the result lies."""

from __future__ import annotations

import math
from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.bfloat16 import Bfloat16
from minipeft.engine.fast import replaces
from minipeft.engine.fast.cuda_blas import product
from minipeft.engine.fast.cuda_kernels import spread
from minipeft.engine.fast.cuda_lowrank import Made, both, gather, joined, narrow, widen
from minipeft.engine.fast.layout import in_blocks
from minipeft.engine.ops import operands, rows
from minipeft.engine.tensor import Array, Onto


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
def linear(x: Array, W: Any, b: Array | None = None, wanted: tuple = (), again: tuple = ()) -> Any:
    x2, V = factors(rows(x), W)
    y = product(x2, V.T)
    if b is not None:
        y += b
    kept, shape = _kept(x, again) if True in wanted[1:2] else None, x.shape

    def vjp(g: Array, wanted: tuple) -> tuple:
        gx = _onto(g, W, shape) if wanted[0] else None
        gW = product(rows(g).T, rows(kept())) if wanted[1] else None  # type: ignore[misc]
        return gx, gW, g if b is not None and wanted[2] else None

    return y.reshape(*x.shape[:-1], len(W)), vjp


def _kept(x: Array, again: tuple, at: int = 0) -> Any:
    """What gives x in the backward pass: how it is made again, or else x, which is then kept."""
    return again[at] if again and again[at] is not None else lambda: x


def _matrix(kept: Any) -> Array | Made:
    """As `gather` takes it: rows, or what makes them where they are needed."""
    return kept if isinstance(kept, Made) else rows(kept())


def _onto(g: Array, W: Any, shape: tuple, low: tuple | None = None) -> Onto:
    """The gradient g W, if there is a W, and h A, if `low` is (h, A), added by the products themselves to what is there."""

    def onto(have: Array | None, ours: bool) -> Array:
        if have is None and low is not None and W is not None and type(W) is not Bfloat16:
            whole = joined(rows(g), W.T, low[0], low[1].T)
            if whole is not None:
                return whole.reshape(shape)
        y = None if have is None else rows(have)
        out = y if ours and y is not None else xp.empty((math.prod(shape[:-1]), shape[-1]), g.dtype)
        if low is not None:
            widen(low[0], low[1].T, out, y)
        elif y is not None and out is not y:
            out[...] = y
        if W is not None:
            product(*factors(rows(g), W), out=out, beta=float(low is not None or y is not None))
        return out.reshape(shape)

    return Onto(onto)


@replaces(ops.matmul, "cupy")
def matmul(x: Array, y: Array) -> Any:
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(f"matmul needs matrices, not shapes {x.shape} and {y.shape}")

    def vjp_y(g: Array) -> Array:
        return product(rows(x).T, rows(g)) if y.ndim == 2 else product(xp.swapaxes(x, -1, -2), g)

    z = product(rows(x), y).reshape(*x.shape[:-1], y.shape[-1]) if y.ndim == 2 else product(x, y)
    return z, (lambda g: product(g, xp.swapaxes(y, -1, -2)), vjp_y)


@replaces(ops.linear_lowrank, "cupy")
def linear_lowrank(
    x: Array, W: Any, A: Array, B: Array, b: Array | None = None, *, s: float, wanted: tuple = (), again: tuple = ()
) -> Any:
    x2 = rows(x)
    h, y = narrow(x2, A, s), None
    if b is None and type(W) is not Bfloat16:
        y = joined(x2, W, h, B)
    if y is None:
        y = widen(h, B, xp.empty((len(x2), len(W)), x.dtype), b=b)
        xV, V = factors(x2, W)
        product(xV, V.T, out=y, beta=1.0)
    kept, shape = _kept(x, again) if True in wanted[1:3] else None, x.shape

    def vjp(g: Array, wanted: tuple) -> tuple:
        gh, gB = _both_sides(rows(g), B, h, s, wanted[0] or wanted[2], wanted[3])
        gx = _onto(g, W, shape, (gh, A)) if wanted[0] else None
        gW = product(rows(g).T, rows(kept())) if wanted[1] else None  # type: ignore[misc]
        gA = gather(gh, _matrix(kept)) if wanted[2] else None
        return gx, gW, gA, gB, g if b is not None and wanted[4] else None

    return y.reshape(*shape[:-1], len(W)), vjp


@replaces(ops.add_lowrank, "cupy")
def add_lowrank(y: Array, x: Array, A: Array, B: Array, *, s: float, wanted: tuple = (), again: tuple = ()) -> Any:
    h, y2 = narrow(rows(x), A, s), rows(y)
    z = widen(h, B, xp.empty(y2.shape, y.dtype), y2)
    kept, shape = _kept(x, again, 1) if True in wanted[2:3] else None, x.shape

    def vjp(g: Array, wanted: tuple) -> tuple:
        gh, gB = _both_sides(rows(g), B, h, s, wanted[1] or wanted[2], wanted[3])
        gx = _onto(g, None, shape, (gh, A)) if wanted[1] else None
        gA = gather(gh, _matrix(kept)) if wanted[2] else None
        return g if wanted[0] else None, gx, gA, gB

    return z.reshape(y.shape), vjp


def _both_sides(g: Array, B: Array, h: Array, s: float, one: bool, other: bool) -> tuple[Any, Any]:
    """s g B and gᵀ h, of which perhaps one alone is wanted."""
    if one and other:
        return both(g, B, h, s)
    return narrow(g, B.T, s) if one else None, gather(h, g, turned=True) if other else None


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
