"""On the host, attention in blocks of queries, keys first, without the keys that a block cannot see."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from minipeft.engine import ops
from minipeft.engine.backend import lowest, xp
from minipeft.engine.fast import loops, replaces
from minipeft.engine.fast.blocks import over_products, pieces
from minipeft.engine.fast.layout import heads_last
from minipeft.engine.tensor import Array

KEPT = 1 << 18  # queries × keys of a head up to which attention keeps its weights for the backward pass
QUERIES = 64  # in a block where they are kept


@replaces(ops.attention, "numpy")
def attention(q: Array, k: Array, v: Array, bias: Array | None = None, *, scale: float, wanted: tuple = ()) -> Any:
    """Blocks of queries, each without the keys at the end that the bias hides from all of it.

    Scores lie as (keys, queries), so that what belongs to a query, its largest score and the sum of its weights, is found by
    adding whole rows. Of a long sequence the weights p are not kept: the largest score and the sum are, and the backward pass
    computes each block again (Dao et al. 2022, https://arxiv.org/abs/2205.14135, §3.1). The result lies with the heads last.
    """
    b, h, t, d = q.shape
    groups, s, e, dtype = k.shape[1], k.shape[2], v.shape[-1], q.dtype
    shared = h // max(groups, 1)  # heads of a group

    def split(x: Array) -> Array:  # (b, h, ...) -> (b, g, h/g, ...)
        return x.reshape(b, groups, shared, *x.shape[2:])

    factor = xp.full((), scale, dtype)
    q5, k5, v5 = split(q * factor), k[:, :, None], v[:, :, None]
    o = heads_last(b, t, h, e, dtype)
    o5 = split(o)
    bias5 = None if bias is None else _split_bias(bias, groups)
    blocks = _query_blocks(b * shared, t, s, bias5, dtype)
    turned = None if bias is None else _split_bias(_keys_first(bias), groups).swapaxes(-1, -2)
    kept = None  # p, where a gradient will ask for it
    if True in wanted and t * s <= KEPT:
        kept = [xp.empty((b, groups, shared, n, at.stop - at.start), dtype) for at, n in blocks]
    top, total = (xp.empty((b, groups, shared, 1, t), dtype) for _ in range(2))
    flops = 2 * b * h * t * s * (d + e)
    nbytes = b * h * t * s * dtype.itemsize  # of the scores

    def weights(of: slice, block: int, known: bool) -> Array:
        """p of some groups in a block of queries, (b, groups, h/g, n, queries); fills top and total unless known."""
        at, n = blocks[block]
        queries = xp.swapaxes(q5[:, of, :, at], -1, -2)
        p = xp.matmul(k5[:, of, :, :n], queries, out=None if kept is None else kept[block][:, of])
        mask = None
        if turned is not None:
            mask = turned[
                :,
                of if turned.shape[1] > 1 else slice(None),
                :,
                : n if turned.shape[3] > 1 else None,
                at if turned.shape[4] > 1 else slice(None),
            ]
        if loops.single(p):
            _weigh(p, mask, top[:, of, :, 0, at], total[:, of, :, 0, at], known)
            return p
        if mask is not None:
            p += mask
        if not known:
            top[:, of, :, :, at] = p.max(axis=-2, keepdims=True)
        p -= top[:, of, :, :, at]
        xp.exp(p, out=p)
        if not known:
            total[:, of, :, :, at] = p.sum(axis=-2, keepdims=True)
        p *= 1 / total[:, of, :, :, at]
        return p

    def forward(of: slice) -> None:
        for block, (at, n) in enumerate(blocks):
            p = weights(of, block, known=False)
            xp.matmul(xp.swapaxes(p, -1, -2), v5[:, of, :, :n], out=o5[:, of, :, at])

    over_products(forward, groups, flops, nbytes)

    def vjp(g: Array, wanted: tuple) -> tuple:
        want_bias = bias is not None and wanted[3]
        gq = heads_last(b, t, h, d, dtype) if wanted[0] else None
        gk = heads_last(b, s, groups, d, dtype) if wanted[1] else None
        gv = heads_last(b, s, groups, e, dtype) if wanted[2] else None
        gbias = xp.zeros((b, h, t, s), dtype) if want_bias else None
        gq5, gbias5 = (None if a is None else split(a) for a in (gq, gbias))
        g5 = split(g)
        sees = None if bias is None else ~(top <= lowest(dtype) / 4)  # what is NaN stays so
        if sees is not None and bool(sees.all()):
            sees = None

        def backward(of: slice) -> None:
            for block in reversed(range(len(blocks))):  # the last has all keys
                at, n = blocks[block]
                fresh = block == len(blocks) - 1  # nothing is in gk and gv yet
                p = weights(of, block, known=True) if kept is None else kept[block][:, of]
                gn = g5[:, of, :, at]
                if gv is not None:
                    _add_grouped(gv[:, of, :n], p, gn, fresh)
                if gq5 is None and gk is None and gbias5 is None:
                    continue
                gs = v5[:, of, :, :n] @ xp.swapaxes(gn, -1, -2)
                along = xp.ascontiguousarray(np.vecdot(gn, o5[:, of, :, at]))  # Σ p ∂/∂p over the keys
                if loops.single(gs, p, along):
                    for i, x in _stacks(p):
                        loops.kernels().softmax_back(_stack(gs[i]), x, along[i].reshape(-1, along.shape[-1]))
                else:
                    gs -= along[..., None, :]
                    gs *= p
                if sees is not None:
                    gs *= sees[:, of, :, :, at]
                if gbias5 is not None:
                    gbias5[:, of, :, at, :n] = xp.swapaxes(gs, -1, -2)
                if gq5 is not None:
                    xp.matmul(xp.swapaxes(gs, -1, -2), k5[:, of, :, :n], out=gq5[:, of, :, at])
                    gq5[:, of, :, at] *= factor
                if gk is not None:
                    _add_grouped(gk[:, of, :n], gs, q5[:, of, :, at], fresh)

        over_products(backward, groups, 2 * flops, nbytes)
        return gq, gk, gv, gbias

    return o, vjp


def _weigh(p: Array, mask: Any, top: Array, total: Array, known: bool) -> None:
    """Scores p (b, g, h/g, keys, queries) become weights, by one compiled loop; top and total are (b, g, h/g, queries)."""
    if mask is not None and (mask.shape[1:3] != (1, 1) or mask.shape[3:] != p.shape[3:]):
        p += mask
        mask = None
    masks = xp.empty((0, 0, 0), p.dtype) if mask is None else xp.ascontiguousarray(mask[:, 0, 0])
    for i, x in _stacks(p):
        own = masks[i] if len(masks) > 1 else masks
        most, sums = (xp.ascontiguousarray(a[i]).reshape(len(x), -1) for a in (top, total))
        loops.kernels().softmax(x, own, max(1, len(x) // max(1, len(own))), most, sums, known)
        if not known:
            top[i], total[i] = most.reshape(top[i].shape), sums.reshape(total[i].shape)


def _stacks(p: Array) -> list[tuple[slice, Array]]:
    """p (b, …, keys, queries) as stacks of matrices, views: one, or one for each row where they do not lie behind one another."""
    parts = [slice(None)] if p.flags.c_contiguous else [slice(i, i + 1) for i in range(len(p))]
    return [(i, _stack(p[i])) for i in parts]


def _stack(p: Array) -> Array:
    x = p.reshape(-1, *p.shape[-2:])
    assert x.base is not None  # a view: it is written to
    return x


def _add_grouped(out: Array, p: Array, g: Array, fresh: bool) -> None:
    """out (b, g, s, d) += p g, summed over the heads of a group, for p (b, g, h/g, s, t), g (b, g, h/g, t, d); = if fresh."""
    for i in range(p.shape[2]):
        if fresh and i == 0:
            xp.matmul(p[:, :, i], g[:, :, i], out=out)
        else:
            out += p[:, :, i] @ g[:, :, i]


def _split_bias(bias: Array, groups: int) -> Array:
    """bias (up to 4 axes, broadcasting to (b, h, t, s)) as (b or 1, g or 1, h/g or 1, t or 1, s or 1)."""
    shape = (1,) * (4 - bias.ndim) + bias.shape
    heads = (groups, shape[1] // groups) if shape[1] > 1 else (1, 1)
    return bias.reshape(shape[0], *heads, *shape[2:])


_laid: list[tuple[weakref.ref, Array]] = []  # the last masks, and what they were laid out as


def _keys_first(bias: Array) -> Array:
    """bias as 4 axes (·, ·, t, s) that lie in memory as (·, ·, s, t); of a mask, which nobody can write to, once for all layers."""
    for known, laid in _laid:
        if known() is bias:
            return laid
    four = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    laid = xp.swapaxes(xp.ascontiguousarray(xp.swapaxes(four, -1, -2)), -1, -2)
    if not bias.flags.writeable and bias.ndim:
        _laid[:] = [*[pair for pair in _laid if pair[0]() is not None][-3:], (weakref.ref(bias), laid)]
    return laid


def _query_blocks(heads: int, t: int, s: int, bias: Any, dtype: Any) -> list[tuple[slice, int]]:
    """Blocks of queries, each with the number of keys that it needs: those after them are hidden from all its queries."""
    kept = t * s <= KEPT
    whole = [(slice(0, t), s)]
    looks = bias is not None and min(bias.shape[3:]) > 1
    if kept and (t <= QUERIES or not looks):
        return whole
    blocks = []
    for at in pieces(slice(0, t), QUERIES if kept else max(32, KEPT // (heads * s))):
        n = s
        if looks and at.stop < t:  # the last has every key: it is where their gradients begin
            seen = bias[:, :, :, at] > lowest(dtype) / 4
            if bool(seen.any(axis=-1).all()):  # a query that sees nothing weighs all keys alike
                n = s - int(seen.any(axis=(0, 1, 2, 3))[::-1].argmax())
        blocks.append((at, n))
    return whole if kept and all(n == s for _, n in blocks) else blocks
