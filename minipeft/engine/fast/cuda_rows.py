"""On a GPU, what treats every row or number by itself: one kernel each, in fewer passes over memory."""

from __future__ import annotations

from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.fast import replaces
from minipeft.engine.fast.cuda_kernels import dense, elementwise, number, run, spread
from minipeft.engine.fast.layout import heads_last
from minipeft.engine.tensor import Array


@replaces(ops.rms_norm, "cupy")
def rms_norm(x: Array, w: Array, *, eps: float) -> Any:
    x, w = dense(x, w)
    n = x.shape[-1]
    y, rstd = xp.empty(x.shape, x.dtype), xp.empty(x.size // max(n, 1), x.dtype)
    run("rms_forward", x, rstd.size, (x, w, y, rstd, n, number(x, eps)), n)

    def vjp(g: Array, wanted: tuple) -> tuple:
        (g,), gx, gw = dense(g), None, None
        if wanted[0]:
            gx = xp.empty(x.shape, x.dtype)
            run("rms_backward", x, rstd.size, (g, x, w, rstd, gx, n), n)
        if wanted[1]:
            gw = (g * x).reshape(-1, n) * rstd[:, None]
        return gx, gw

    return y, vjp


@replaces(ops.layer_norm, "cupy")
def layer_norm(x: Array, w: Array, b: Array, *, eps: float) -> Any:
    x, w, b = dense(x, w, b)
    n = x.shape[-1]
    y, mean, rstd = xp.empty(x.shape, x.dtype), *(xp.empty(x.size // max(n, 1), x.dtype) for _ in range(2))
    run("layer_forward", x, rstd.size, (x, w, b, y, mean, rstd, n, number(x, eps)), n)

    def vjp(g: Array, wanted: tuple) -> tuple:
        (g,), gx, gw = dense(g), None, None
        if wanted[0]:
            gx = xp.empty(x.shape, x.dtype)
            run("layer_backward", x, rstd.size, (g, x, w, mean, rstd, gx, n), n)
        if wanted[1]:
            gw = g.reshape(-1, n) * ((x.reshape(-1, n) - mean[:, None]) * rstd[:, None])
        return gx, gw, g if wanted[2] else None

    return y, vjp


_SIGMOID = "T s = x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));"


@replaces(ops.silu_mul, "cupy")
def silu_mul(x: Array, y: Array) -> Any:
    z = elementwise("T x, T y", "T z", _SIGMOID + "z = x * s * y;", "silu_mul")(x, y)

    def vjp(g: Array, wanted: tuple) -> tuple:
        body = _SIGMOID + "gx = g * y * s * (1 + x * (1 - s)); gy = g * x * s;"
        if all(wanted):
            return tuple(elementwise("T x, T y, T g", "T gx, T gy", body, "silu_mul_backward")(x, y, g))
        one = "gx" if wanted[0] else "gy"
        body = _SIGMOID + ("gx = g * y * s * (1 + x * (1 - s));" if wanted[0] else "gy = g * x * s;")
        found = elementwise("T x, T y, T g", f"T {one}", body, f"silu_mul_{one}")(x, y, g)
        return (found, None) if wanted[0] else (None, found)

    return z, vjp


@replaces(ops.gelu, "cupy")
def gelu(x: Array) -> Any:
    y = elementwise("T x", "T y", "y = x * (T)0.5 * (1 + erf(x * (T)0.70710678118654752));", "gelu")(x)
    body = """T P = (T)0.5 * (1 + erf(x * (T)0.70710678118654752));
              gx = g * (P + x * exp((T)-0.5 * x * x) * (T)0.39894228040143268);"""
    return y, (lambda g: elementwise("T x, T g", "T gx", body, "gelu_backward")(x, g),)


@replaces(ops.gelu_tanh, "cupy")
def gelu_tanh(x: Array) -> Any:
    t = "T c = 0.79788456080286536, a = 0.044715, t = tanh(c * x * (1 + a * x * x));"
    y = elementwise("T x", "T y", t + "y = (T)0.5 * x * (1 + t);", "gelu_tanh")(x)
    body = t + "gx = g * ((T)0.5 * (1 + t) + (T)0.5 * x * (1 - t * t) * c * (1 + 3 * a * x * x));"
    return y, (lambda g: elementwise("T x, T g", "T gx", body, "gelu_tanh_backward")(x, g),)


@replaces(ops.rope, "cupy")
def rope(x: Array, *, cos: Array, sin: Array) -> Any:
    b, h, t, d = x.shape
    steps = [s // x.itemsize for s in xp.broadcast_to(cos, (b, 1, t, d // 2)).strides]
    if cos.strides != sin.strides or steps[3] != 1:
        cos, sin = dense(cos, sin)
        steps = [s // x.itemsize for s in xp.broadcast_to(cos, (b, 1, t, d // 2)).strides]

    def turned(x: Array, y: Array, sign: float) -> Array:
        if x.strides[-1] != x.itemsize:
            x = xp.ascontiguousarray(x)
        at = [s // x.itemsize for s in (*x.strides[:3], *y.strides[:3])]
        total = x.size // 2
        args = (x, y, cos, sin, h, t, d // 2, number(x, sign), *at, steps[0], steps[2], total)
        spread("rope", x, total, args)
        return y

    y = turned(x, xp.empty(x.shape, x.dtype), 1.0)
    return y, (lambda g: turned(g, heads_last(b, t, h, d, x.dtype), -1.0),)


@replaces(ops.cross_entropy, "cupy")
def cross_entropy(logits: Array, *, labels: Array, ignore: int = -100) -> Any:
    """A label out of range makes the loss NaN: a device is not waited for to refuse it."""
    V = logits.shape[-1]
    x = xp.ascontiguousarray(logits.reshape(-1, V))
    y = xp.ascontiguousarray(labels.reshape(-1)).astype("int64", copy=False)
    kept = y != ignore
    count = xp.maximum(kept.sum(), 1).astype(x.dtype)
    lse, each = xp.empty(len(x), x.dtype), xp.empty(len(x), x.dtype)
    run("entropy_forward", x, len(x), (x, y, ignore, lse, each, V), V)
    loss = each.sum() / count

    def vjp(g: Array) -> Array:
        gx = xp.empty(x.shape, x.dtype)
        g = xp.ascontiguousarray(g, dtype=x.dtype)
        run("entropy_backward", x, len(x), (x, y, ignore, lse, g, count, gx, V), V)
        return gx.reshape(logits.shape)

    return loss, (vjp,)
