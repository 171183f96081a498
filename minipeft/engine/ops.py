"""All ops: the forward value and, right beside it, the vector-Jacobian product of every argument.

Positional arguments may be Tensors or arrays; keyword arguments are constants. `g` is the gradient of the loss with
respect to the result. Broadcasting is undone centrally, so a VJP returns its gradient in the shape of the result.

This is the text: each op in its plainest form. What makes some of them fast stands in `minipeft/engine/fast`.
"""

from __future__ import annotations

import builtins
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minipeft.engine import backend
from minipeft.engine.backend import xp
from minipeft.engine.bfloat16 import Bfloat16, rounded
from minipeft.engine.tensor import Array, Put, composed, op
from minipeft.engine.weight import widened

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


def _of_each(name: str, f: Callable, slope: Callable) -> Any:
    """An op on every element: y = f(x), with the derivative slope(x, y)."""

    def unary(x: Array) -> Any:
        y = f(x)
        return y, (lambda g: g * slope(x, y),)

    unary.__name__ = name
    return op(unary)


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # e^−x may be infinite, its reciprocal is the 0 that it should be
        return 1 / (1 + xp.exp(-x))


exp = _of_each("exp", lambda x: xp.exp(x), lambda x, y: y)
log = _of_each("log", lambda x: xp.log(x), lambda x, y: 1 / x)
sqrt = _of_each("sqrt", lambda x: xp.sqrt(x), lambda x, y: 0.5 / y)
absolute = _of_each("absolute", lambda x: abs(x), lambda x, y: xp.sign(x))
sin = _of_each("sin", lambda x: xp.sin(x), lambda x, y: xp.cos(x))
cos = _of_each("cos", lambda x: xp.cos(x), lambda x, y: -xp.sin(x))
tanh = _of_each("tanh", lambda x: xp.tanh(x), lambda x, y: 1 - y * y)
sigmoid = _of_each("sigmoid", _sigmoid, lambda x, y: y * (1 - y))
relu = _of_each("relu", lambda x: xp.maximum(x, 0), lambda x, y: x > 0)
softplus = _of_each(
    "softplus", lambda x: xp.logaddexp(x, xp.zeros((), x.dtype)), lambda x, y: _sigmoid(x)
)  # log(1 + e^x)
silu = _of_each("silu", lambda x: x * _sigmoid(x), lambda x, y: _sigmoid(x) * (1 + x * _sigmoid(-x)))


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
        gx = xp.zeros_like(x)
        xp.put_along_axis(gx, i, _restore(g, x.ndim, axis, keepdims), axis)
        return gx

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
    ends = list(itertools.accumulate(x.shape[axis] for x in xs))[:-1]
    return xp.concatenate(xs, axis=axis), tuple(lambda g, i=i: xp.split(g, ends, axis=axis)[i] for i in range(len(xs)))


@op
def stack(*xs: Array, axis: int = 0) -> Any:
    return xp.stack(xs, axis=axis), tuple(lambda g, i=i: xp.moveaxis(g, axis, 0)[i] for i in range(len(xs)))


@op
def getitem(x: Array, *, index: Any) -> Any:
    """x[index] for slices, integers and integer or boolean arrays."""
    return x[index], (lambda g: Put(index, g),)


@op
def put(x: Array, *, index: Any, shape: tuple) -> Any:
    """Zeros of `shape` with x added at `index`; entries named twice add up."""
    y = xp.zeros(shape, x.dtype)
    xp.add.at(y, index, x)
    return y, (lambda g: g[index],)


@op
def take(W: Array, *, ids: Array) -> Any:
    """Rows of a table (V, d): W[ids] of shape (*ids.shape, d)."""
    return W[ids], (lambda g: Put(ids, g),)


# --- products and solves --------------------------------------------------------------------------------------------


@op
def matmul(x: Array, y: Array) -> Any:
    """x @ y over the last two axes, broadcasting the others. Raises ValueError for vectors."""
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(f"matmul needs matrices, not shapes {x.shape} and {y.shape}")
    return x @ y, (lambda g: g @ xp.swapaxes(y, -1, -2), lambda g: xp.swapaxes(x, -1, -2) @ g)


@op
def solve(M: Array, y: Array) -> Any:
    """M⁻¹ y for stacks of square matrices M (..., n, n) and right-hand sides y (..., n, k)."""
    z = backend.solve(M, y)

    def back(g: Array) -> Array:
        return backend.solve(xp.swapaxes(M, -1, -2), g)

    return z, (lambda g: -back(g) @ xp.swapaxes(z, -1, -2), back)


@op
def ifft2(S: Array) -> Any:
    """The real part of the inverse 2-D discrete Fourier transform of a real spectrum S (m, n), 1/(mn) included.

    Its kernel cos 2π(jp/m + kq/n)/(mn) is symmetric, so it is its own adjoint.
    """

    def back(S: Array) -> Array:
        return xp.ascontiguousarray(xp.fft.ifft2(S).real).astype(S.dtype, copy=False)

    return back(S), (back,)


# --- normalisation, activations, attention, loss ---------------------------------------------------------------------


@op
def softmax(x: Array) -> Any:
    """e^x / Σ e^x over the last axis."""
    y = _softmax(x)
    return y, (lambda g: _softmax_back(y, g),)


@op
def log_softmax(x: Array) -> Any:
    """x − log Σ e^x over the last axis."""
    y = _log_softmax(x)
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
    t = xp.tanh(c * (x + a * x * x * x))
    return 0.5 * x * (1 + t), (lambda g: g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * a * x * x)),)


@composed
def silu_mul(x: Array, y: Array) -> Any:
    """silu(x) · y, the gate of a gated feed-forward (Shazeer 2020, https://arxiv.org/abs/2002.05202, eq. 6)."""
    return mul(silu(x), y)


@op
def layer_norm(x: Array, w: Array, b: Array, *, eps: float) -> Any:
    """(x − mean)/√(var + eps) · w + b over the last axis (Ba et al. 2016, https://arxiv.org/abs/1607.06450, eq. 4)."""
    centred = x - _mean(x)
    rstd = 1 / xp.sqrt(_mean(centred * centred) + eps)
    xhat = centred * rstd

    def vjp_x(g: Array) -> Array:
        gw = g * w
        return (gw - _mean(gw) - xhat * _mean(gw * xhat)) * rstd

    return xhat * w + b, (vjp_x, lambda g: g * xhat, lambda g: g)


@op
def rms_norm(x: Array, w: Array, *, eps: float) -> Any:
    """x/√(mean x² + eps) · w over the last axis (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4)."""
    rstd = 1 / xp.sqrt(_mean(x * x) + eps)
    xhat = x * rstd

    def vjp_x(g: Array) -> Array:
        gw = g * w
        return (gw - xhat * _mean(gw * xhat)) * rstd

    return xhat * w, (vjp_x, lambda g: g * xhat)


@op
def linear(x: Array, W: Array, b: Array | None = None) -> Any:
    """x Wᵀ + b for x (..., in), W (out, in), b (out,) or None.

    W may be a `Weight`, a constant, which is an array while a product needs it. Beside a `Bfloat16` x, and in the gradient of x the
    factor g, are rounded to bfloat16 as well, and summed up in their own type. The gradient is that of the product without roundings.
    """
    xV, V = operands(x, W)
    y = xV @ V.T

    def vjp_x(g: Array) -> Array:
        gV, V = operands(g, W)
        return gV @ V

    return y if b is None else y + b, (vjp_x, lambda g: rows(g).T @ rows(x), lambda g: g)


@op
def add_lowrank(y: Array, x: Array, A: Array, B: Array, *, s: float) -> Any:
    """y + s (x Aᵀ) Bᵀ for y (..., out), x (..., in), A (r, in), B (out, r), without forming B A."""
    h = s * (x @ A.T)
    return y + h @ B.T, (
        lambda g: g,
        lambda g: s * (g @ B) @ A,
        lambda g: s * (rows(g @ B).T @ rows(x)),
        lambda g: rows(g).T @ rows(h),
    )


@composed
def linear_lowrank(x: Array, W: Array, A: Array, B: Array, b: Array | None = None, *, s: float) -> Any:
    """x (W + s B A)ᵀ + b. W may be a `Bfloat16`, as in `linear`: what the low rank adds is not rounded then."""
    return add_lowrank(linear(x, W, b), x, A, B, s=s)


@composed
def block_matmul(x: Array, R: Array) -> Any:
    """x diag(R_1, …, R_K) for x (..., K β) and R (K, β, γ): (..., K γ). R (1, β, γ) stands for every R_k."""
    K, n = x.shape[-1] // R.shape[1], math.prod(x.shape[:-1])
    blocks = swapaxes(reshape(x, shape=(n, K, R.shape[1])), a=0, b=1)  # (K, n, β)
    return reshape(swapaxes(matmul(blocks, R), a=0, b=1), shape=(*x.shape[:-1], K * R.shape[2]))


@op
def rope(x: Array, *, cos: Array, sin: Array) -> Any:
    """Rotary positions: rotate the pairs (x[i], x[i + d/2]) of x (b, h, t, d) by angles given as cos, sin (·, 1, t, d/2).

    Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34, with the halves paired as in Llama.
    """

    def rotate(x: Array, sin: Array) -> Array:
        lo, hi = xp.split(x, 2, axis=-1)
        return xp.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], axis=-1)

    return rotate(x, sin), (lambda g: rotate(g, -sin),)


@op
def attention(q: Array, k: Array, v: Array, bias: Array | None = None, *, scale: float) -> Any:
    """softmax(scale · q kᵀ + bias) v with grouped heads (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1).

    q (b, h, t, d); k, v (b, g, s, d) with g dividing h, each serving h/g heads; bias broadcasts to (b, h, t, s).
    Returns (b, h, t, d).

    A bias below a quarter of the dtype's lowest number hides a key. A query from which all keys are hidden weighs them alike,
    whatever its scores are: they are lost in rounding, and so is the gradient of q, k and bias there.
    """
    shared = q.shape[1] // builtins.max(k.shape[1], 1)
    k, v = (xp.repeat(x, shared, axis=1) for x in (k, v))
    scores = scale * (q @ xp.swapaxes(k, -1, -2)) + (0 if bias is None else bias)
    p, sees = _softmax(scores), ~(scores <= backend.lowest(q.dtype) / 4).all(axis=-1, keepdims=True)

    def back(g: Array) -> Array:  # to the scores
        return sees * _softmax_back(p, g @ xp.swapaxes(v, -1, -2))

    def grouped(g: Array) -> Array:  # (b, h, s, d) -> (b, g, s, d)
        return g.reshape(g.shape[0], g.shape[1] // builtins.max(shared, 1), shared, *g.shape[2:]).sum(axis=2)

    return p @ v, (
        lambda g: scale * (back(g) @ k),
        lambda g: grouped(scale * (xp.swapaxes(back(g), -1, -2) @ q)),
        lambda g: grouped(xp.swapaxes(p, -1, -2) @ g),
        back,
    )


@op
def cross_entropy(logits: Array, *, labels: Array, ignore: int = -100) -> Any:
    """The mean of −log softmax(logits)[label] over the labels that are not `ignore`; logits (..., V), labels (...).

    0 where every label is ignored. Raises ValueError if a label lies outside 0 … V−1, unless a device would have to say so.
    """
    x, y = rows(logits), labels.reshape(-1)
    kept = y != ignore
    V, outside = x.shape[-1], kept & ((y < 0) | (y >= x.shape[-1]))
    backend.refuse(outside, lambda: f"labels must lie in 0 … {V - 1} or be {ignore}, found {int(y[outside][0])}")
    n = xp.maximum(kept.sum(), 1).astype(x.dtype)
    at = xp.arange(len(y)), xp.where(kept, y, 0)
    logp = _log_softmax(x)

    def vjp(g: Array) -> Array:
        p = xp.exp(logp)
        p[at] -= 1
        return (p * (kept * (g / n))[:, None]).reshape(logits.shape)

    return xp.asarray(-(logp[at] * kept).sum() / n, dtype=logits.dtype), (vjp,)


# --- helpers on arrays ----------------------------------------------------------------------------------------------


def rows(x: Array) -> Array:
    """x (..., n) as a matrix (·, n); the row count is spelled out because -1 is ambiguous where n is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1] if x.ndim else 1)


def operands(x: Array, W: Any) -> tuple[Array, Array]:
    """x and W as they meet in a product: W as an array; beside one held in bfloat16 x is rounded to that as well."""
    return rounded(x) if type(W) is Bfloat16 else x, widened(W)


def _mean(x: Array) -> Array:
    return x.mean(axis=-1, keepdims=True)


def _softmax(x: Array) -> Array:
    y = xp.exp(x - x.max(axis=-1, keepdims=True))
    return y / y.sum(axis=-1, keepdims=True)


def _softmax_back(y: Array, g: Array) -> Array:
    return y * (g - (y * g).sum(axis=-1, keepdims=True))


def _log_softmax(x: Array) -> Array:
    y = x - x.max(axis=-1, keepdims=True)
    return y - xp.log(xp.exp(y).sum(axis=-1, keepdims=True))


def _restore(g: Array, ndim: int, axis: Any, keepdims: bool) -> Array:
    """Give g back the axes that a sum over `axis` removed, with length 1."""
    return g if keepdims else xp.expand_dims(g, tuple(range(ndim)) if axis is None else axis)
