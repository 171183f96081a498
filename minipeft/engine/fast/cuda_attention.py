"""On a GPU, attention: products by cuBLAS, and a kernel for all that lies between them."""

from __future__ import annotations

from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import lowest, xp
from minipeft.engine.fast import replaces
from minipeft.engine.fast.cuda_blas import product
from minipeft.engine.fast.cuda_kernels import number, run
from minipeft.engine.fast.layout import heads_last
from minipeft.engine.tensor import Array

KEPT = 32 << 20  # bytes of attention weights that are kept for the backward pass; more are computed again


@replaces(ops.attention, "cupy")
def attention(q: Array, k: Array, v: Array, bias: Array | None = None, *, scale: float, wanted: tuple = ()) -> Any:
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
