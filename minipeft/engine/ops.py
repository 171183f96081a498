"""All ops: the forward value and, right beside it, the vector-Jacobian product of every argument.

Positional arguments may be Tensors or arrays; keyword arguments are constants. `g` is the gradient of the loss with
respect to the result. Broadcasting is undone centrally, so a VJP returns its gradient in the shape of the result.
The fused ops at the end equal compositions of the ones before them.
"""

from __future__ import annotations

import builtins
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from minipeft.engine import backend
from minipeft.engine.backend import xp
from minipeft.engine.bfloat16 import Bfloat16, rounded
from minipeft.engine.blocks import over_products, over_rows, pieces, thin
from minipeft.engine.tensor import Array, Put, Tensor, op

# --- arithmetic -----------------------------------------------------------------------------------------------------


@op
def add(x: Array, y: Array) -> Any:
    return x + y, (lambda g: g, lambda g: g)


@op
def sub(x: Array, y: Array) -> Any:
    return x - y, (lambda g: g, lambda g: -g)


@op
def mul(x: Array, y: Array) -> Any:
    return x * y, (lambda g: g * y, lambda g: g * x)


@op
def div(x: Array, y: Array) -> Any:
    z = x / y
    return z, (lambda g: g / y, lambda g: -g * z / y)


@op
def neg(x: Array) -> Any:
    return -x, (lambda g: -g,)


@op
def power(x: Array, *, p: float) -> Any:
    """x**p for a constant p."""
    return x**p, (lambda g: g * (p * x ** (p - 1)),)


@op
def maximum(x: Array, y: Array) -> Any:
    """The larger of x and y; at a tie the gradient goes to x."""
    first = x >= y
    return xp.where(first, x, y), (lambda g: g * first, lambda g: g * ~first)


@op
def minimum(x: Array, y: Array) -> Any:
    """The smaller of x and y; at a tie the gradient goes to x."""
    first = x <= y
    return xp.where(first, x, y), (lambda g: g * first, lambda g: g * ~first)


@op
def where(x: Array, y: Array, *, condition: Array) -> Any:
    """x where the condition holds, y elsewhere."""
    return xp.where(condition, x, y), (lambda g: xp.where(condition, g, 0), lambda g: xp.where(condition, 0, g))


# --- functions of one element ---------------------------------------------------------------------------------------


@op
def exp(x: Array) -> Any:
    y = xp.exp(x)
    return y, (lambda g: g * y,)


@op
def log(x: Array) -> Any:
    return xp.log(x), (lambda g: g / x,)


@op
def sqrt(x: Array) -> Any:
    y = xp.sqrt(x)
    return y, (lambda g: g / (2 * y),)


@op
def absolute(x: Array) -> Any:
    return abs(x), (lambda g: g * xp.sign(x),)


@op
def sin(x: Array) -> Any:
    return xp.sin(x), (lambda g: g * xp.cos(x),)


@op
def cos(x: Array) -> Any:
    return xp.cos(x), (lambda g: -g * xp.sin(x),)


@op
def tanh(x: Array) -> Any:
    y = xp.tanh(x)
    return y, (lambda g: g * (1 - y * y),)


@op
def sigmoid(x: Array) -> Any:
    y = _sigmoid(x)
    return y, (lambda g: g * y * (1 - y),)


@op
def relu(x: Array) -> Any:
    return xp.maximum(x, 0), (lambda g: g * (x > 0),)


@op
def softplus(x: Array) -> Any:
    """log(1 + e^x), without overflow."""
    return xp.logaddexp(x, xp.zeros((), x.dtype)), (lambda g: g * _sigmoid(x),)


# --- sums and shapes ------------------------------------------------------------------------------------------------


@op
def sum(x: Array, *, axis: Any = None, keepdims: bool = False) -> Any:
    return x.sum(axis=axis, keepdims=keepdims), (
        lambda g: xp.broadcast_to(_restore(g, x.ndim, axis, keepdims), x.shape),
    )


@op
def mean(x: Array, *, axis: Any = None, keepdims: bool = False) -> Any:
    y = x.mean(axis=axis, keepdims=keepdims)
    n = x.size // builtins.max(y.size, 1)
    return y, (lambda g: xp.broadcast_to(_restore(g, x.ndim, axis, keepdims) / n, x.shape),)


@op
def max(x: Array, *, axis: int, keepdims: bool = False) -> Any:
    """The largest along an axis; the gradient goes to its first occurrence."""
    i = xp.expand_dims(x.argmax(axis=axis), axis)
    y = xp.take_along_axis(x, i, axis)

    def vjp(g: Array) -> Array:
        out = xp.zeros_like(x)
        xp.put_along_axis(out, i, _restore(g, x.ndim, axis, keepdims), axis)
        return out

    return (y if keepdims else y.squeeze(axis)), (vjp,)


@op
def norm(x: Array, *, axis: Any = None, keepdims: bool = False) -> Any:
    """The Euclidean norm, √Σx², with gradient 0 where it is 0."""
    y = xp.sqrt((x * x).sum(axis=axis, keepdims=True))

    def vjp(g: Array) -> Array:
        return _restore(g, x.ndim, axis, keepdims) * x / xp.where(y == 0, xp.ones((), y.dtype), y)

    return (y if keepdims else y.reshape(()) if axis is None else y.squeeze(axis)), (vjp,)


@op
def reshape(x: Array, *, shape: tuple) -> Any:
    return x.reshape(shape), (lambda g: g.reshape(x.shape),)


@op
def transpose(x: Array, *, axes: tuple | None = None) -> Any:
    axes = axes or tuple(reversed(range(x.ndim)))
    back = sorted(range(x.ndim), key=lambda i: axes[i] % x.ndim)
    return x.transpose(axes), (lambda g: g.transpose(back),)


@op
def swapaxes(x: Array, *, a: int = -1, b: int = -2) -> Any:
    return xp.swapaxes(x, a, b), (lambda g: xp.swapaxes(g, a, b),)


@op
def broadcast_to(x: Array, *, shape: tuple) -> Any:
    return xp.broadcast_to(x, shape), (lambda g: g,)


@op
def concatenate(*xs: Array, axis: int = 0) -> Any:
    y = xp.concatenate(xs, axis=axis)
    ends: list[int] = []
    for x in xs:
        ends.append((ends[-1] if ends else 0) + x.shape[axis])
    before = (slice(None),) * (axis % y.ndim)
    parts = [(*before, slice(end - x.shape[axis], end)) for x, end in zip(xs, ends, strict=True)]
    return y, tuple(lambda g, part=part: g[part] for part in parts)


@op
def stack(*xs: Array, axis: int = 0) -> Any:
    before = (slice(None),) * (axis % (xs[0].ndim + 1))
    return xp.stack(xs, axis=axis), tuple(lambda g, i=i: g[(*before, i)] for i in range(len(xs)))


@op
def getitem(x: Array, *, index: Any) -> Any:
    """x[index] for slices, integers and integer or boolean arrays."""
    parts = index if isinstance(index, tuple) else (index,)
    repeats = any(not isinstance(i, int | slice | type(None) | type(Ellipsis)) for i in parts)
    return x[index], (lambda g: Put(index, g, repeats),)


@op
def put(x: Array, *, index: Any, shape: tuple, repeats: bool = True) -> Any:
    """Zeros of `shape` with x added at `index`; entries named twice add up. repeats=False says that none is, which is faster."""
    y = xp.zeros(shape, x.dtype)
    if repeats:
        xp.add.at(y, index, x)
    else:
        y[index] = x
    return y, (lambda g: g[index],)


@op
def take(W: Array, *, ids: Array) -> Any:
    """Rows of a table (V, d): W[ids] of shape (*ids.shape, d)."""
    return W[ids], (lambda g: Put(ids, g, True),)


# --- products and solves --------------------------------------------------------------------------------------------


@op
def matmul(x: Array, y: Array) -> Any:
    """x @ y over the last two axes, broadcasting the others. Raises ValueError for vectors."""
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(f"matmul needs matrices, not shapes {x.shape} and {y.shape}")

    def vjp_y(g: Array) -> Array:
        if y.ndim == 2:
            return _product(_rows(x).T, _rows(g))
        return _product(xp.swapaxes(x, -1, -2), g)

    if y.ndim == 2 and x.ndim > 2:  # one product, not one for each batch row
        z = _product(_rows(x), y).reshape(*x.shape[:-1], y.shape[-1])
    else:
        z = _product(x, y)
    return z, (lambda g: _product(g, xp.swapaxes(y, -1, -2)), vjp_y)


@op
def solve(M: Array, y: Array) -> Any:
    """M⁻¹ y for stacks of square matrices M (..., n, n) and right-hand sides y (..., n, k)."""
    shape = y.shape[:-2]
    if M.shape[:-2] != shape:  # CuPy does not broadcast here
        shape = xp.broadcast_shapes(M.shape[:-2], shape)
        M, y = (xp.broadcast_to(a, (*shape, *a.shape[-2:])) for a in (M, y))

    def solved(M: Array, y: Array) -> Array:  # cuSOLVER takes no empty right-hand side
        return xp.linalg.solve(M, y) if y.size else xp.zeros(y.shape, y.dtype)

    z = solved(M, y)

    def back(g: Array) -> Array:
        return solved(xp.swapaxes(M, -1, -2), g)

    return z, (lambda g: -back(g) @ xp.swapaxes(z, -1, -2), back)


@op
def ifft2(S: Array) -> Any:
    """The real part of the inverse 2-D discrete Fourier transform of a real spectrum S (m, n), 1/(mn) included.

    Its kernel cos 2π(jp/m + kq/n)/(mn) is symmetric, so it is its own adjoint.
    """
    return _real_ifft2(S), (_real_ifft2,)


# --- fused: normalisation, activations, attention, loss --------------------------------------------------------------


@op
def softmax(x: Array) -> Any:
    """e^x / Σ e^x over the last axis."""
    y = x - x.max(axis=-1, keepdims=True)
    xp.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)

    def vjp(g: Array) -> Array:
        gy = g * y
        gy -= y * gy.sum(axis=-1, keepdims=True)
        return gy

    return y, (vjp,)


@op
def log_softmax(x: Array) -> Any:
    """x − log Σ e^x over the last axis."""
    y = x - x.max(axis=-1, keepdims=True)
    y -= xp.log(xp.exp(y).sum(axis=-1, keepdims=True))
    return y, (lambda g: g - xp.exp(y) * g.sum(axis=-1, keepdims=True),)


@op
def gelu(x: Array) -> Any:
    """x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415, §2)."""
    Phi = 0.5 * (1 + backend.erf(x * math.sqrt(0.5)))
    return x * Phi, (lambda g: g * (Phi + x * (xp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi)))),)


@op
def gelu_tanh(x: Array) -> Any:
    """x/2 (1 + tanh(√(2/π)(x + 0.044715 x³))), the approximation of Hendrycks & Gimpel 2016, §2."""
    c, a = math.sqrt(2 / math.pi), 0.044715
    y = xp.empty(x.shape, x.dtype)
    x2, y2 = _rows(x), _rows(y)

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
        g2, gx2 = _rows(g), _rows(gx)

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


@op
def silu(x: Array) -> Any:
    """x σ(x)."""
    s = _sigmoid(x)
    return x * s, (lambda g: g * (s * (1 + x * (1 - s))),)


@op
def silu_mul(x: Array, y: Array) -> Any:
    """silu(x) · y, the gate of a gated feed-forward (Shazeer 2020, https://arxiv.org/abs/2002.05202, eq. 6).

    The backward pass computes σ(x) again rather than have it kept: it is as large as x.
    """
    x, y = xp.broadcast_arrays(x, y)
    z = xp.empty(x.shape, x.dtype)
    x2, y2, z2 = _rows(x), _rows(y), _rows(z)

    def forward(at: slice) -> None:
        z = xp.divide(x2[at], _one_plus_exp(x2[at]), out=z2[at])
        z *= y2[at]

    over_rows(forward, len(z2), z.nbytes)

    def vjp(g: Array, wanted: tuple) -> tuple:
        gx, gy = (xp.empty(z.shape, z.dtype) if w else None for w in wanted)
        g2, gx2, gy2 = _rows(g), *(None if a is None else _rows(a) for a in (gx, gy))

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


@op
def layer_norm(x: Array, w: Array, b: Array, *, eps: float) -> Any:
    """(x − mean)/√(var + eps) · w + b over the last axis (Ba et al. 2016, https://arxiv.org/abs/1607.06450, eq. 4)."""
    xhat, y = xp.empty(x.shape, x.dtype), xp.empty(x.shape, x.dtype)
    x2, xhat2, y2 = _rows(x), _rows(xhat), _rows(y)
    rstd = xp.empty((len(x2), 1), x.dtype)

    def forward(at: slice) -> None:
        hat = xp.subtract(x2[at], x2[at].mean(axis=-1, keepdims=True), out=xhat2[at])
        rstd[at] = 1 / xp.sqrt(_mean_product(hat, hat) + eps)
        hat *= rstd[at]
        xp.multiply(hat, w, out=y2[at])
        y2[at] += b

    over_rows(forward, len(x2), x.nbytes)

    def vjp(g: Array, wanted: tuple) -> tuple:
        g2, gx, gw = _rows(g), None, None
        if wanted[0]:
            gx = xp.empty(g.shape, g.dtype)
            gx2 = _rows(gx)

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


@op
def rms_norm(x: Array, w: Array, *, eps: float) -> Any:
    """x/√(mean x² + eps) · w over the last axis (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4)."""
    y = xp.empty(x.shape, x.dtype)
    x2, y2 = _rows(x), _rows(y)
    rstd = xp.empty((len(x2), 1), x.dtype)

    def forward(at: slice) -> None:
        rstd[at] = 1 / xp.sqrt(_mean_product(x2[at], x2[at]) + eps)
        xp.multiply(x2[at], rstd[at], out=y2[at])
        y2[at] *= w

    over_rows(forward, len(x2), x.nbytes)

    def vjp(g: Array, wanted: tuple) -> tuple:
        g2, gx, gw = _rows(g), None, None
        if wanted[0]:
            gx = xp.empty(x.shape, x.dtype)
            gx2 = _rows(gx)

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


@op
def linear(x: Array, W: Array, b: Array | None = None) -> Any:
    """x Wᵀ + b for x (..., in), W (out, in), b (out,) or None.

    W may be a `Bfloat16`, a constant: then x, and in the gradient of x the factor g, are rounded to bfloat16 as well,
    and summed up in their own type. The gradient is that of the product without roundings.
    """
    x2, V = _factors(_rows(x), W)
    y = _product(x2, V.T)
    if b is not None:
        y += b
    shape = x.shape  # x itself is kept for W's gradient alone

    def vjp_x(g: Array) -> Array:
        return _product(*_factors(_rows(g), W)).reshape(shape)

    def vjp_W(g: Array) -> Array:
        return _product(_rows(g).T, x2)

    vjps = (vjp_x, vjp_W, (lambda g: g) if b is not None else None)
    return y.reshape(*shape[:-1], len(W)), vjps


@op
def linear_lowrank(x: Array, W: Array, A: Array, B: Array, b: Array | None = None, *, s: float) -> Any:
    """x (W + s B A)ᵀ + b: `linear` and `add_lowrank` in one, writing to y and x's gradient in place.

    Where x has few rows it is x Wᵀ + s (x Aᵀ) Bᵀ + b. Where it has many, W is less to change than y: W + s B A is formed, some
    rows at a time, and never kept. W may be a `Bfloat16`, as in `linear`: what the low rank adds is not rounded then, so it is
    added to y.
    """
    x2 = _rows(x)
    xV, V = _factors(x2, W)
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
        g2 = _rows(g)
        gx = xp.empty(x2.shape, x.dtype) if wanted[0] else None
        gV, V = _factors(g2, W) if wanted[0] else (g2, W)
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


CHANGED = 512  # rows of a changed W that are held at once


@op
def add_lowrank(y: Array, x: Array, A: Array, B: Array, *, s: float) -> Any:
    """y + s (x Aᵀ) Bᵀ for y (..., out), x (..., in), A (r, in), B (out, r), without forming B A."""
    x2, z = _rows(x), _rows(y).copy()
    h, sA = xp.empty((len(x2), len(A)), x.dtype), s * A
    flops = 2 * len(A) * (x2.size + z.size)

    def forward(at: slice) -> None:
        h[at] = _narrow(x2[at], sA.T)
        _add_narrow(z[at], h[at], B.T)

    over_products(forward, len(x2), flops)

    def vjp(g: Array, wanted: tuple) -> tuple:
        g2 = _rows(g)
        gx = xp.empty(x2.shape, x.dtype) if wanted[1] else None
        parts: dict[int, tuple] = {}

        def backward(at: slice) -> None:
            gh, parts[at.start] = _lowrank_grads(g2[at], x2[at], h[at], B, s, wanted[2:4])
            if gx is not None:
                xp.matmul(gh, A, out=gx[at])

        over_products(backward, len(x2), 2 * flops)
        return g if wanted[0] else None, None if gx is None else gx.reshape(x.shape), *_added(parts)

    return z.reshape(y.shape), vjp


@op
def block_matmul(x: Array, R: Array) -> Any:
    """x diag(R_1, …, R_K) for x (..., K β) and R (K, β, γ): (..., K γ). R (1, β, γ) stands for every R_k.

    Each product is written where it belongs: nothing is copied to bring the blocks together.
    """
    beta, gamma = R.shape[1:]
    K, n, one = x.shape[-1] // beta, math.prod(x.shape[:-1]), len(R) == 1
    flops = 2 * x.size * gamma
    y = xp.empty((n, K * gamma), x.dtype)
    x3, y3 = _in_blocks(x, K, one), _in_blocks(y, K, one)
    over_products(lambda at: xp.matmul(x3[:, at], R, out=y3[:, at]), x3.shape[1], flops)

    def vjp(g: Array, wanted: tuple) -> tuple:
        gx = xp.empty((n, K * beta), x.dtype) if wanted[0] else None
        g3, gx3 = _in_blocks(g, K, one), None if gx is None else _in_blocks(gx, K, one)
        parts: dict[int, tuple] = {}

        def backward(at: slice) -> None:
            if gx3 is not None:
                xp.matmul(g3[:, at], xp.swapaxes(R, -1, -2), out=gx3[:, at])
            parts[at.start] = (xp.swapaxes(x3[:, at], -1, -2) @ g3[:, at] if wanted[1] else None,)

        over_products(backward, g3.shape[1], 2 * flops)
        return None if gx is None else gx.reshape(x.shape), *_added(parts)

    return y.reshape(*x.shape[:-1], K * gamma), vjp


@op
def rope(x: Array, *, cos: Array, sin: Array) -> Any:
    """Rotary positions: rotate the pairs (x[i], x[i + d/2]) of x (b, h, t, d) by angles given as cos, sin (·, 1, t, d/2).

    Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34, with the halves paired as in Llama.
    """
    b, h, t, d = x.shape

    def table(lo: Array, hi: Array) -> Array:  # (·, t, h, d): for every head, so that whole rows are multiplied
        one = xp.swapaxes(xp.concatenate([lo, hi], axis=-1), 1, 2)
        return xp.ascontiguousarray(xp.broadcast_to(one, (len(one), t, h, d)))

    cos2, sin2 = table(cos, cos), table(-sin, sin)

    def rotate(x: Array, by: Callable) -> Array:
        y = _heads_last(b, t, h, d, x.dtype)
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


@op
def attention(q: Array, k: Array, v: Array, bias: Array | None = None, *, scale: float, wanted: tuple = ()) -> Any:
    """softmax(scale · q kᵀ + bias) v with grouped heads (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1).

    q (b, h, t, d); k, v (b, g, s, d) with g dividing h, each serving h/g heads; bias broadcasts to (b, h, t, s).
    Returns (b, h, t, d), laid out so that joining the heads copies nothing.

    A bias below a quarter of the dtype's lowest number hides a key. A query from which all keys are hidden weighs them alike,
    whatever its scores are: they are lost in rounding, and so is the gradient of q, k and bias there.

    Scores lie as (keys, queries), so that what belongs to a query, its largest score and the sum of its weights, is found by
    adding whole rows. Sequences are computed in blocks of queries, each without the keys at the end that the bias hides from
    all of it. Of a long sequence the weights p are not kept: the largest score and the sum are, and the backward pass
    computes each block again (Dao et al. 2022, https://arxiv.org/abs/2205.14135, §3.1).
    """
    b, h, t, d = q.shape
    groups, s, e, dtype = k.shape[1], k.shape[2], v.shape[-1], q.dtype
    shared = h // builtins.max(groups, 1)  # heads of a group

    def split(x: Array) -> Array:  # (b, h, ...) -> (b, g, h/g, ...)
        return x.reshape(b, groups, shared, *x.shape[2:])

    factor = xp.full((), scale, dtype)
    q5, k5, v5 = split(q * factor), k[:, :, None], v[:, :, None]
    o = _heads_last(b, t, h, e, dtype)
    o5 = split(o)
    bias5 = None if bias is None else _split_bias(bias, groups)
    blocks = _query_blocks(b * shared, t, s, bias5, dtype)
    turned = None if bias5 is None else _turned(bias5)
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
        if turned is not None:
            p += turned[
                :,
                of if turned.shape[1] > 1 else slice(None),
                :,
                : n if turned.shape[3] > 1 else None,
                at if turned.shape[4] > 1 else slice(None),
            ]
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
        gq = _heads_last(b, t, h, d, dtype) if wanted[0] else None
        gk = _heads_last(b, s, groups, d, dtype) if wanted[1] else None
        gv = _heads_last(b, s, groups, e, dtype) if wanted[2] else None
        gbias = xp.zeros((b, h, t, s), dtype) if want_bias else None
        gq5, gbias5 = (None if a is None else split(a) for a in (gq, gbias))
        g5 = split(g)
        sees = None if bias is None else ~(top <= lowest(dtype) / 4)  # what is NaN stays so
        if sees is not None and backend.name() == "numpy" and bool(sees.all()):  # (a device is not waited for)
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
                gs -= _dot(gn, o5[:, of, :, at])[..., None, :]  # Σ p ∂/∂p over the keys
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


@op
def cross_entropy(logits: Array, *, labels: Array, ignore: int = -100, checked: bool = False) -> Any:
    """The mean of −log softmax(logits)[label] over the labels that are not `ignore`; logits (..., V), labels (...).

    0 where every label is ignored. Raises ValueError if a label lies outside 0 … V−1; `checked` says that none does, and
    that there is no need to wait for a device to tell.
    """
    V = logits.shape[-1]
    x, y = logits.reshape(-1, V), labels.reshape(-1)
    kept = y != ignore
    if not checked:
        _check_labels(y, V, ignore)
    n = xp.maximum(kept.sum(), 1).astype(x.dtype)
    rows = xp.arange(len(y))
    y = xp.where(kept, y, 0)
    lse = xp.empty((len(x), 1), x.dtype)

    def forward(at: slice) -> None:
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
            z = xp.subtract(x[at], lse[at], out=p[at])
            xp.exp(z, out=z)
            z[rows[: len(z)], y[at]] -= 1
            z *= weight[at]

        over_rows(backward, len(x), x.nbytes)
        return p.reshape(logits.shape)

    return xp.asarray(loss, dtype=logits.dtype), (vjp,)


# --- helpers on arrays ----------------------------------------------------------------------------------------------


def _rows(x: Array) -> Array:
    """x (..., n) as a matrix (·, n); the row count is spelled out because -1 is ambiguous where n is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1] if x.ndim else 1)


def _factors(x: Array, W: Any) -> tuple[Array, Array]:
    """x and W as they meet in a product: beside a W held in bfloat16 x is rounded to that as well."""
    return (rounded(x), W.dequantize()) if type(W) is Bfloat16 else (x, W)


def _check_labels(y: Array, V: int, ignore: int) -> None:
    """Raise ValueError for labels outside 0 … V−1 that are not `ignore`. Waits for a device."""
    if not bool(((y >= 0) & (y < V) | (y == ignore)).all()):
        raise ValueError(f"labels must lie in 0 … {V - 1} or be {ignore}, found {int(y.min())} … {int(y.max())}")


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


def _in_blocks(x: Array, K: int, one: bool) -> Array:
    """x (..., K w) as (K, n, w), a view; as (1, n K, w) where one matrix multiplies every block."""
    n, w = math.prod(x.shape[:-1]), x.shape[-1] // K
    return x.reshape(1, n * K, w) if one else xp.swapaxes(x.reshape(n, K, w), 0, 1)


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
    for at in pieces(slice(0, len(y)), builtins.max(1, len(y) // thin(len(y), M.size))):
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


def _restore(g: Array, ndim: int, axis: Any, keepdims: bool) -> Array:
    """Give g back the axes that a sum over `axis` removed, with length 1."""
    if keepdims:
        return g
    if axis is None:
        return g.reshape((1,) * ndim)
    axes = axis if isinstance(axis, tuple) else (axis,)
    return xp.expand_dims(g, tuple(a % ndim for a in axes))


def _mean_product(x: Array, y: Array) -> Array:
    """mean(x · y) over the last axis, kept with length 1."""
    return (_dot(x, y) / x.shape[-1])[..., None]


def _dot(x: Array, y: Array) -> Array:
    """Σ x · y over the last axis."""
    return np.vecdot(x, y) if backend.name() == "numpy" else xp.einsum("...i,...i->...", x, y)


def _real_ifft2(S: Array) -> Array:
    return xp.ascontiguousarray(xp.fft.ifft2(S).real).astype(S.dtype, copy=False)


def _heads_last(b: int, t: int, h: int, d: int, dtype: Any) -> Array:
    """An empty (b, h, t, d) array laid out in memory as (b, t, h, d)."""
    return xp.swapaxes(xp.empty((b, t, h, d), dtype), 1, 2)


def _add_grouped(out: Array, p: Array, g: Array, fresh: bool) -> None:
    """out (b, g, s, d) += p g, summed over the heads of a group, for p (b, g, h/g, s, t), g (b, g, h/g, t, d); = if fresh."""
    for i in range(p.shape[2]):
        if fresh and i == 0:
            xp.matmul(p[:, :, i], g[:, :, i], out=out)
        else:
            out += p[:, :, i] @ g[:, :, i]


KEPT = 1 << 18  # queries × keys of a head up to which attention keeps its weights for the backward pass
QUERIES = 64  # in a block where they are kept


def lowest(dtype: Any) -> float:
    """The lowest number of a dtype. Half of it, added to a score, hides a key from `attention`."""
    return float(xp.finfo(dtype).min)


def _split_bias(bias: Array, groups: int) -> Array:
    """bias (up to 4 axes, broadcasting to (b, h, t, s)) as (b or 1, g or 1, h/g or 1, t or 1, s or 1)."""
    shape = (1,) * (4 - bias.ndim) + bias.shape
    heads = (groups, shape[1] // groups) if shape[1] > 1 else (1, 1)
    return bias.reshape(shape[0], *heads, *shape[2:])


def _turned(bias: Array) -> Array:
    """bias (..., t or 1, s or 1) as (..., s or 1, t or 1), rows behind one another."""
    return xp.ascontiguousarray(xp.swapaxes(bias, -1, -2))


def keys_first(bias: Array) -> Array:
    """bias (..., t, s) laid out in memory as `attention` reads it on the host, so that it is not copied in every layer."""
    return xp.swapaxes(_turned(bias), -1, -2) if backend.name() == "numpy" else bias


def _query_blocks(heads: int, t: int, s: int, bias: Any, dtype: Any) -> list[tuple[slice, int]]:
    """Blocks of queries, each with the number of keys that it needs: those after them are hidden from all its queries."""
    kept = t * s <= KEPT
    whole = [(slice(0, t), s)]
    # (looked up on the host alone: a GPU would have to be waited for)
    looks = backend.name() == "numpy" and bias is not None and builtins.min(bias.shape[3:]) > 1
    if kept and (t <= QUERIES or not looks):
        return whole
    blocks = []
    for at in pieces(slice(0, t), QUERIES if kept else builtins.max(32, KEPT // (heads * s))):
        n = s
        if looks and at.stop < t:  # the last has every key: it is where their gradients begin
            seen = bias[:, :, :, at] > lowest(dtype) / 4
            if bool(seen.any(axis=-1).all()):  # a query that sees nothing weighs all keys alike
                n = s - int(seen.any(axis=(0, 1, 2, 3))[::-1].argmax())
        blocks.append((at, n))
    return whole if kept and all(n == s for _, n in blocks) else blocks


# --- operators ------------------------------------------------------------------------------------------------------


def _operators() -> None:
    T: Any = Tensor
    for name, f in {"add": add, "sub": sub, "mul": mul, "truediv": div, "matmul": matmul}.items():
        setattr(T, f"__{name}__", lambda self, other, f=f: f(self, _operand(other)))
        setattr(T, f"__r{name}__", lambda self, other, f=f: f(_operand(other), self))
    T.__neg__ = neg
    T.__abs__ = absolute
    T.__pow__ = lambda self, p: power(self, p=p)
    T.__getitem__ = lambda self, index: getitem(self, index=index)
    T.T = property(lambda self: transpose(self))
    T.sum = lambda self, axis=None, keepdims=False: sum(self, axis=axis, keepdims=keepdims)
    T.mean = lambda self, axis=None, keepdims=False: mean(self, axis=axis, keepdims=keepdims)
    T.reshape = lambda self, *shape: reshape(self, shape=shape[0] if isinstance(shape[0], tuple) else shape)
    T.swapaxes = lambda self, a, b: swapaxes(self, a=a, b=b)
    T.transpose = lambda self, *axes: transpose(self, axes=axes[0] if axes and isinstance(axes[0], tuple) else axes)


def _operand(x: Any) -> Any:
    """Numbers, NumPy's too, become Python's, so that they never widen a Tensor's dtype; arrays are left as they are."""
    return float(x) if isinstance(x, numbers.Real) else x


_operators()
