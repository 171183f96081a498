"""On a GPU, attention: in float32 by blocks whose scores stay in registers, else by cuBLAS and a kernel for what lies between."""

from __future__ import annotations

from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import lowest, xp
from minipeft.engine.fast import cuda_blas, replaces
from minipeft.engine.fast.cuda_blas import product
from minipeft.engine.fast.cuda_kernels import aligned, number, on_tensor_cores, run
from minipeft.engine.fast.layout import heads_last
from minipeft.engine.tensor import Array, Tensor

KEPT = 32 << 20  # bytes of attention weights that are kept for the backward pass; more are computed again
BLOCK, THREADS, SEERS = 64, 128, 1024  # of attention.cu
WIDTHS = (16, 32, 64, 128)  # of a head, that it is compiled for


@replaces(ops.attention, "cupy")
def attention(q: Array, k: Array, v: Array, bias: Array | None = None, *, scale: float) -> Any:
    """By products, whose scores are written to memory."""
    b, h, t, d = q.shape
    groups, s, e, dtype = k.shape[1], k.shape[2], v.shape[-1], q.dtype
    shared = h // max(groups, 1)

    def split(x: Array) -> Array:
        return x.reshape(b, groups, shared, *x.shape[2:])

    q5, k5, v5 = split(q), k[:, :, None], v[:, :, None]
    at = [0] * 4
    if bias is not None:
        at = [step // bias.itemsize for step in xp.broadcast_to(bias, (b, h, t, s)).strides]

    tops = xp.empty(b * h * t, dtype)  # the largest score of each query

    def weights() -> Array:
        p = product(q5, xp.swapaxes(k5, -1, -2))
        args = (p, 0 if bias is None else bias, tops, s, t, h, number(p, scale), *at)
        run("softmax_rows", p, b * h * t if s else 0, args, s)
        return p

    p = weights()
    o = heads_last(b, t, h, e, dtype)
    product(p, v5, out=split(o))
    kept = p if p.nbytes <= KEPT else None

    def vjp(g: Array, wanted: tuple) -> tuple:
        p = weights() if kept is None else kept
        g5, gq, gk, gv, gbias = split(g), None, None, None, None
        if wanted[2]:
            gv = _grouped(p, g5)
        if wanted[0] or wanted[1] or (bias is not None and wanted[3]):
            gs = product(g5, xp.swapaxes(v5, -1, -2))
            hidden = number(p, lowest(dtype) / 4)
            run("softmax_backward", p, b * h * t if s else 0, (p, gs, tops, hidden, s), s)
            if bias is not None and wanted[3]:
                gbias = gs.reshape(b, h, t, s)
            if wanted[0]:
                gq = heads_last(b, t, h, d, dtype)
                product(gs, k5, out=split(gq), alpha=scale)
            if wanted[1]:
                gk = _grouped(gs, q5, scale)
        return gq, gk, gv, gbias

    return o, vjp


def _grouped(p: Array, g: Array, alpha: float = 1.0) -> Array:
    """alpha pᵀ g summed over the heads of a group, (b, g, s, d), laid out as (b, s, g, d)."""
    b, groups, shared, _, s = p.shape
    out = heads_last(b, s, groups, g.shape[-1], g.dtype)
    for i in range(shared):
        product(xp.swapaxes(p[:, :, i], -1, -2), g[:, :, i], out=out, alpha=alpha, beta=float(i > 0))
    return out


def _fits(q: Array, k: Array, v: Array, bias: Array | None = None, *, scale: float) -> bool:
    """Whether attention.cu has it: in float32, of no wide heads, without a gradient of the bias, of more than one query."""
    given = (q, k, v) if bias is None else (q, k, v, bias)
    whole = len(k) == len(v) == len(q) and 0 not in (*q.shape, *v.shape) and q.shape[2] > 1
    fits = whole and max(q.shape[-1], v.shape[-1]) <= WIDTHS[-1] and type(bias) is not Tensor
    return fits and all(x.dtype.name == "float32" for x in given)


@replaces(ops.attention, "cupy", when=_fits)
def attention_in_blocks(q: Array, k: Array, v: Array, bias: Array | None = None, *, scale: float) -> Any:
    """By the kernels of attention.cu."""
    q, k, v = (_rows_dense(x) for x in (q, k, v))
    b, h, t, d = q.shape
    groups, s, e = k.shape[1], k.shape[2], v.shape[-1]
    D, E = (next(w for w in WIDTHS if w >= width) for width in (d, e))
    blocks, products = (-(-t // BLOCK), -(-s // BLOCK)), 1 if cuda_blas.tf32 else 3
    at = [0] * 4
    if bias is not None:
        at = [step // bias.itemsize for step in xp.broadcast_to(bias, (b, h, t, s)).strides]

    def start(name: str, grid: tuple, shared: int, args: tuple, arrays: tuple) -> None:
        macros = dict(D=D, E=E, PRODUCTS=products, VEC=int(aligned(*(arrays or (q, k, v)))))
        steps = [step // x.itemsize for x in arrays for step in x.strides[:3]]
        kernel = on_tensor_cores("attention", name, shared, **macros)
        kernel(grid, (SEERS if name == "attention_seen" else THREADS,), (*args, *steps, *at), shared_mem=shared)

    seen, hidden = 0, number(q, lowest(q.dtype) / 4)
    if bias is not None:
        heads = h if at[1] else 1
        seen = xp.empty(((b if at[0] else 1) * heads, *blocks), xp.uint8)
        start("attention_seen", seen.shape[:2], 4 * blocks[1], (bias, seen, heads, t, s, hidden), ())
    o, stats = heads_last(b, t, h, e, q.dtype), xp.empty((2, b, h, t), q.dtype)
    mask, sizes = (0 if bias is None else bias, seen), (h, h // groups, t, s, d, e, number(q, scale))
    args = (q, k, v, *mask, o, *stats, *sizes)
    start("attention_forward", (b * h, blocks[0]), 4 * BLOCK * (2 * D + E + 12), args, (q, k, v, o))

    def vjp(g: Array, wanted: tuple) -> tuple:
        g, delta = _rows_dense(g), xp.empty((b, h, t), q.dtype)
        gq, gk, gv = (heads_last(b, x.shape[2], x.shape[1], x.shape[3], q.dtype) for x in (q, k, v))
        columns = 32 if max(D, E) > 64 else BLOCK
        shared = 4 * ((BLOCK + columns) * (D + E + 8) + 3 * columns)
        args = (q, k, v, *mask, o, g, *stats, delta, gq, *sizes, hidden)
        start("attention_queries", (b * h, blocks[0]), shared, args, (q, k, v, o, g, gq))
        if wanted[1] or wanted[2]:
            args = (q, k, v, *mask, g, *stats, delta, gk, gv, *sizes, hidden)
            start("attention_keys", (b * groups, blocks[1]), shared, args, (q, k, v, g, gk, gv))
        return gq, gk, gv, None

    return o, vjp


def _rows_dense(x: Array) -> Array:
    return x if x.strides[-1] == x.itemsize else xp.ascontiguousarray(x)
