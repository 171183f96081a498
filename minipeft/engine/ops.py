"""All ops: the forward value and, right beside it, the vector-Jacobian product of every argument.

Positional arguments may be Tensors or arrays; keyword arguments are constants. `g` is the gradient of the loss with
respect to the result. Broadcasting is undone centrally, so a VJP returns its gradient in the shape of the result.
The fused ops at the end equal compositions of the ones before them.
"""

from __future__ import annotations

import builtins
import math
import numbers
from typing import Any

from minipeft.engine import backend
from minipeft.engine.backend import xp
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
def put(x: Array, *, index: Any, shape: tuple) -> Any:
    """Zeros of `shape` with x added at `index` (entries named twice add up)."""
    y = xp.zeros(shape, x.dtype)
    xp.add.at(y, index, x)
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
            return _rows(x).T @ _rows(g)
        return xp.swapaxes(x, -1, -2) @ g

    if y.ndim == 2 and x.ndim > 2:  # one product, not one for each batch row
        z = (_rows(x) @ y).reshape(*x.shape[:-1], y.shape[-1])
    else:
        z = x @ y
    return z, (lambda g: g @ xp.swapaxes(y, -1, -2), vjp_y)


@op
def solve(M: Array, y: Array) -> Any:
    """M⁻¹ y for stacks of square matrices M (..., n, n) and right-hand sides y (..., n, k)."""
    z = xp.linalg.solve(M, y)

    def back(g: Array) -> Array:
        return xp.linalg.solve(xp.swapaxes(M, -1, -2), g)

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
    c = math.sqrt(2 / math.pi)
    x2 = x * x
    t = xp.tanh(c * x * (1 + 0.044715 * x2))
    return 0.5 * x * (1 + t), (lambda g: g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x2)),)


@op
def silu(x: Array) -> Any:
    """x σ(x)."""
    s = _sigmoid(x)
    return x * s, (lambda g: g * (s * (1 + x * (1 - s))),)


@op
def silu_mul(x: Array, y: Array) -> Any:
    """silu(x) · y, the gate of a gated feed-forward (Shazeer 2020, https://arxiv.org/abs/2002.05202, eq. 6)."""
    s = _sigmoid(x)
    xs = x * s
    z = xs * y

    def vjp(g: Array, wanted: tuple) -> tuple:
        gx = gy = None
        if wanted[0]:
            gx = 1 - s
            gx *= xs
            gx += s
            gx *= y
            gx *= g
        if wanted[1]:
            gy = g * xs
        return gx, gy

    return z, vjp


@op
def layer_norm(x: Array, w: Array, b: Array, *, eps: float) -> Any:
    """(x − mean)/√(var + eps) · w + b over the last axis (Ba et al. 2016, https://arxiv.org/abs/1607.06450, eq. 4)."""
    xhat = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / xp.sqrt(_mean_square(xhat) + eps)
    xhat *= rstd
    y = xhat * w
    y += b

    def vjp(g: Array, wanted: tuple) -> tuple:
        gx = gw = None
        if wanted[0]:
            gx = g * w
            along = _mean_product(gx, xhat)
            gx -= gx.mean(axis=-1, keepdims=True)
            gx -= xhat * along
            gx *= rstd
        if wanted[1]:
            gw = g * xhat
        return gx, gw, g if wanted[2] else None

    return y, vjp


@op
def rms_norm(x: Array, w: Array, *, eps: float) -> Any:
    """x/√(mean x² + eps) · w over the last axis (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4)."""
    rstd = 1 / xp.sqrt(_mean_square(x) + eps)
    y = x * rstd
    y *= w

    def vjp(g: Array, wanted: tuple) -> tuple:
        gx = gw = None
        if wanted[0]:
            gx = g * w
            along = _mean_product(gx, x)
            along *= rstd * rstd
            gx -= x * along
            gx *= rstd
        if wanted[1]:
            gw = g * x
            gw *= rstd
        return gx, gw

    return y, vjp


@op
def linear(x: Array, W: Array, b: Array | None = None) -> Any:
    """x Wᵀ + b for x (..., in), W (out, in), b (out,) or None."""
    x2 = _rows(x)
    y = x2 @ W.T
    if b is not None:
        y += b
    shape = x.shape

    def vjp_x(g: Array) -> Array:
        return (_rows(g) @ W).reshape(shape)

    def vjp_W(g: Array) -> Array:
        return _rows(g).T @ x2

    return y.reshape(*shape[:-1], W.shape[0]), (vjp_x, vjp_W, lambda g: g) if b is not None else (vjp_x, vjp_W, None)


@op
def add_lowrank(y: Array, x: Array, A: Array, B: Array, *, s: float) -> Any:
    """y + s (x Aᵀ) Bᵀ for y (..., out), x (..., in), A (r, in), B (out, r), without forming B A."""
    x2 = _rows(x)
    h = x2 @ A.T
    h *= s
    z = (h @ B.T).reshape(y.shape)
    z += y

    def vjp(g: Array, wanted: tuple) -> tuple:
        g2 = _rows(g)
        gx = gA = gB = None
        if wanted[1] or wanted[2]:
            gh = g2 @ B
            gh *= s
            gx = (gh @ A).reshape(x.shape) if wanted[1] else None
            gA = gh.T @ x2 if wanted[2] else None
        if wanted[3]:
            gB = g2.T @ h
        return g if wanted[0] else None, gx, gA, gB

    return z, vjp


@op
def rope(x: Array, *, cos: Array, sin: Array) -> Any:
    """Rotary positions: rotate the pairs (x[i], x[i + d/2]) of x (b, h, t, d) by angles given as cos, sin (·, 1, t, d/2).

    Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34, with the halves paired as in Llama.
    """

    def rotate(x: Array, sin: Array) -> Array:
        half = x.shape[-1] // 2
        lo, hi = x[..., :half], x[..., half:]
        y = xp.empty_like(x)
        xp.multiply(lo, cos, out=y[..., :half])
        y[..., :half] -= hi * sin
        xp.multiply(hi, cos, out=y[..., half:])
        y[..., half:] += lo * sin
        return y

    return rotate(x, sin), (lambda g: rotate(g, -sin),)


@op
def attention(q: Array, k: Array, v: Array, bias: Array | None = None, *, scale: float) -> Any:
    """softmax(scale · q kᵀ + bias) v with grouped heads (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1).

    q (b, h, t, d); k, v (b, g, s, d) with g dividing h, each serving h/g heads; bias broadcasts to (b, h, t, s).
    Returns (b, h, t, d), laid out so that joining the heads copies nothing.
    """
    b, h, t, d = q.shape
    groups, s = k.shape[1], k.shape[2]
    split = (b, groups, h // groups, t)
    q5, k5, v5 = q.reshape(*split, d), k[:, :, None], v[:, :, None]
    p = q5 @ xp.swapaxes(k5, -1, -2)
    p *= scale
    if bias is not None:
        p.reshape(b, h, t, s)[...] += bias
    p -= p.max(axis=-1, keepdims=True)
    xp.exp(p, out=p)
    p /= p.sum(axis=-1, keepdims=True)
    o = _heads_last(b, t, h, v.shape[-1], q.dtype)
    xp.matmul(p, v5, out=o.reshape(*split, v.shape[-1]))

    def vjp(g: Array, wanted: tuple) -> tuple:
        g5 = g.reshape(*split, v.shape[-1])
        gq = gk = gv = gbias = None
        if wanted[2]:
            gv = (xp.swapaxes(p, -1, -2) @ g5).sum(axis=2) if h != groups else _grouped(p, g5)
        if wanted[0] or wanted[1] or (bias is not None and wanted[3]):
            gs = g5 @ xp.swapaxes(v5, -1, -2)
            gs *= p
            gs -= p * gs.sum(axis=-1, keepdims=True)
            if bias is not None and wanted[3]:
                gbias = gs.reshape(b, h, t, s).copy()
            gs *= scale
            if wanted[0]:
                gq = _heads_last(b, t, h, d, q.dtype)
                xp.matmul(gs, k5, out=gq.reshape(*split, d))
            if wanted[1]:
                gk = (xp.swapaxes(gs, -1, -2) @ q5).sum(axis=2) if h != groups else _grouped(gs, q5)
        return gq, gk, gv, gbias

    return o, vjp


@op
def cross_entropy(logits: Array, *, labels: Array, ignore: int = -100) -> Any:
    """The mean of −log softmax(logits)[label] over the labels that are not `ignore`; logits (..., V), labels (...).

    0 where every label is ignored. Raises ValueError if a label lies outside 0 … V−1.
    """
    V = logits.shape[-1]
    x, y = logits.reshape(-1, V), labels.reshape(-1)
    kept = y != ignore
    if not bool(((y >= 0) & (y < V) | ~kept).all()):
        raise ValueError(f"labels must lie in 0 … {V - 1} or be {ignore}, found {int(y.min())} … {int(y.max())}")
    n = int(kept.sum())
    rows = xp.arange(len(y))
    y = xp.where(kept, y, 0)
    top = x.max(axis=-1, keepdims=True)
    z = x - top
    xp.exp(z, out=z)
    lse = xp.log(z.sum(axis=-1, keepdims=True))
    lse += top
    del z
    loss = ((lse[:, 0] - x[rows, y]) * kept).sum() / builtins.max(n, 1)

    def vjp(g: Array) -> Array:
        p = x - lse
        xp.exp(p, out=p)
        p[rows, y] -= 1
        p *= (kept * (g / builtins.max(n, 1)))[:, None]
        return p.reshape(logits.shape)

    return xp.asarray(loss, dtype=logits.dtype), (vjp,)


# --- helpers on arrays ----------------------------------------------------------------------------------------------


def _rows(x: Array) -> Array:
    """x (..., n) as a matrix (·, n); the row count is spelled out because -1 is ambiguous where n is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _sigmoid(x: Array) -> Array:
    y = xp.asarray(xp.minimum(-x, 0.99 * math.log(float(xp.finfo(x.dtype).max))))  # exp must not overflow
    xp.exp(y, out=y)
    y += 1
    return xp.reciprocal(y, out=y)


def _restore(g: Array, ndim: int, axis: Any, keepdims: bool) -> Array:
    """Give g back the axes that a sum over `axis` removed, with length 1."""
    if keepdims:
        return g
    if axis is None:
        return g.reshape((1,) * ndim)
    axes = axis if isinstance(axis, tuple) else (axis,)
    return xp.expand_dims(g, tuple(a % ndim for a in axes))


def _mean_square(x: Array) -> Array:
    return _mean_product(x, x)


def _mean_product(x: Array, y: Array) -> Array:
    """mean(x · y) over the last axis, kept with length 1."""
    return (xp.einsum("...i,...i->...", x, y) / x.shape[-1])[..., None]


def _real_ifft2(S: Array) -> Array:
    return xp.ascontiguousarray(xp.fft.ifft2(S).real).astype(S.dtype, copy=False)


def _heads_last(b: int, t: int, h: int, d: int, dtype: Any) -> Array:
    """An empty (b, h, t, d) array laid out in memory as (b, t, h, d)."""
    return xp.swapaxes(xp.empty((b, t, h, d), dtype), 1, 2)


def _grouped(p: Array, g: Array) -> Array:
    """pᵀ g for p (b, h, 1, t, s), g (b, h, 1, t, d) -> (b, h, s, d), laid out as (b, s, h, d)."""
    b, h, _, _, s = p.shape
    out = _heads_last(b, s, h, g.shape[-1], g.dtype)
    xp.matmul(xp.swapaxes(p[:, :, 0], -1, -2), g[:, :, 0], out=out)
    return out


# --- operators ------------------------------------------------------------------------------------------------------


def _operators() -> None:
    T: Any = Tensor
    for name, f in {"add": add, "sub": sub, "mul": mul, "truediv": div, "matmul": matmul}.items():
        setattr(T, f"__{name}__", lambda self, other, f=f: f(self, _as_array(other, self)))
        setattr(T, f"__r{name}__", lambda self, other, f=f: f(_as_array(other, self), self))
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


def _as_array(x: Any, like: Tensor) -> Any:
    """Numbers, NumPy's too, become arrays of the Tensor's dtype, so that they never widen it."""
    return xp.asarray(x, dtype=like.dtype) if isinstance(x, numbers.Real) else x


_operators()
