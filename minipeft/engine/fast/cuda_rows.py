"""On a GPU, what treats every row or number by itself: one kernel each, in fewer passes over memory."""

from __future__ import annotations

from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.fast import replaces
from minipeft.engine.fast.cuda_kernels import by_four, dense, elementwise, number, run, spread
from minipeft.engine.fast.cuda_lowrank import Made
from minipeft.engine.fast.layout import heads_last
from minipeft.engine.tensor import Array, Onto


@replaces(ops.rms_norm, "cupy")
def rms_norm(x: Array, w: Array, *, eps: float) -> Any:
    x, w = dense(x, w)
    n = x.shape[-1]
    y, rstd = xp.empty(x.shape, x.dtype), xp.empty(x.size // max(n, 1), x.dtype)
    run(by_four("rms_forward", n, x, w, y), x, rstd.size, (x, w, y, rstd, n, number(x, eps)), n)

    def vjp(g: Array, wanted: tuple) -> tuple:
        (g,), gw = dense(g), None
        if wanted[1]:
            gw = (g * x).reshape(-1, n) * rstd[:, None]
        return _onto(x, "rms_backward", (g, x, w, rstd)) if wanted[0] else None, gw

    def again() -> Array:
        return x * rstd.reshape(*x.shape[:-1], 1) * w

    vjp.again = Made("x * s * w", again, x, w=w, s=rstd)  # type: ignore[attr-defined]
    return y, vjp


def _onto(x: Array, kernel: str, args: tuple) -> Onto:
    """The gradient of x that a norm's kernel adds to what is there."""

    def onto(have: Array | None, ours: bool) -> Array:
        more = None if have is None else xp.ascontiguousarray(have)
        gx = more if ours and more is not None else xp.empty(x.shape, x.dtype)
        n, g, w = x.shape[-1], args[0], args[2]
        name = by_four(kernel, n, *(a for a in (g, x, w, gx, more) if a is not None))
        run(name, x, x.size // max(n, 1), (*args, 0 if more is None else more, gx, n), n)
        return gx

    return Onto(onto)


@replaces(ops.layer_norm, "cupy")
def layer_norm(x: Array, w: Array, b: Array, *, eps: float) -> Any:
    x, w, b = dense(x, w, b)
    n = x.shape[-1]
    y, mean, rstd = xp.empty(x.shape, x.dtype), *(xp.empty(x.size // max(n, 1), x.dtype) for _ in range(2))
    run(by_four("layer_forward", n, x, w, b, y), x, rstd.size, (x, w, b, y, mean, rstd, n, number(x, eps)), n)

    def normed() -> Array:
        return (x.reshape(-1, n) - mean[:, None]) * rstd[:, None]

    def vjp(g: Array, wanted: tuple) -> tuple:
        (g,) = dense(g)
        gx = _onto(x, "layer_backward", (g, x, w, mean, rstd)) if wanted[0] else None
        gw = g.reshape(-1, n) * normed() if wanted[1] else None
        return gx, gw, g if wanted[2] else None

    def again() -> Array:
        return (normed() * w + b).reshape(x.shape)

    vjp.again = Made("(x - m) * s * w + b", again, x, w=w, b=b, m=mean, s=rstd)  # type: ignore[attr-defined]
    return y, vjp


LARGE = 1 << 16  # numbers, from which on more counts than to begin


def _large(x: Any, y: Any) -> bool:
    return getattr(x, "size", 0) >= LARGE and x.shape == getattr(y, "shape", None) and x.dtype == y.dtype


@replaces(ops.add, "cupy", when=_large)
def add(x: Array, y: Array) -> Any:
    return elementwise("T x, T y", "T z", "z = x + y;", "add")(x, y), (lambda g: g, lambda g: g)


_SIGMOID = "T s = x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));"


SILU_MUL = "x / (1 + exp(-x)) * y"


@replaces(ops.silu_mul, "cupy")
def silu_mul(x: Array, y: Array) -> Any:
    def made() -> Array:
        return elementwise("T x, T y", "T z", f"z = {SILU_MUL};", "silu_mul")(x, y)

    def vjp(g: Array, wanted: tuple) -> tuple:
        body = _SIGMOID + "gx = g * y * s * (1 + x * (1 - s)); gy = g * x * s;"
        if all(wanted):
            return tuple(elementwise("T x, T y, T g", "T gx, T gy", body, "silu_mul_backward")(x, y, g))
        one = "gx" if wanted[0] else "gy"
        body = _SIGMOID + ("gx = g * y * s * (1 + x * (1 - s));" if wanted[0] else "gy = g * x * s;")
        found = elementwise("T x, T y, T g", f"T {one}", body, f"silu_mul_{one}")(x, y, g)
        return (found, None) if wanted[0] else (None, found)

    if x.shape == y.shape and x.flags.c_contiguous and y.flags.c_contiguous:
        vjp.again = Made(SILU_MUL, made, x, y)  # type: ignore[attr-defined]
    return made(), vjp


@replaces(ops.gelu, "cupy")
def gelu(x: Array) -> Any:
    body = """T P = (T)0.5 * (1 + erf(x * (T)0.70710678118654752));
              gx = g * (P + x * exp((T)-0.5 * x * x) * (T)0.39894228040143268);"""
    return _of_each(x, "x * (T)0.5 * (1 + erf(x * (T)0.70710678118654752))", body, "gelu")


def _of_each(x: Array, value: str, body: str, name: str) -> Any:
    """A function of every number, whose value can be made again."""

    def made() -> Array:
        return elementwise("T x", "T y", f"y = {value};", name)(x)

    def vjp(g: Array, wanted: tuple) -> tuple:
        return (elementwise("T x, T g", "T gx", body, f"{name}_backward")(x, g),)

    if x.flags.c_contiguous:
        vjp.again = Made(value, made, x)  # type: ignore[attr-defined]
    return made(), vjp


@replaces(ops.gelu_tanh, "cupy")
def gelu_tanh(x: Array) -> Any:
    t = "tanh((T)0.79788456080286536 * x * (1 + (T)0.044715 * x * x))"
    body = f"""T c = 0.79788456080286536, a = 0.044715, t = {t};
               gx = g * ((T)0.5 * (1 + t) + (T)0.5 * x * (1 - t * t) * c * (1 + 3 * a * x * x));"""
    return _of_each(x, f"(T)0.5 * x * (1 + {t})", body, "gelu_tanh")


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
        name = by_four("rope", d // 2, x, y, cos, sin)
        total = x.size // (2 if name == "rope" else 8)
        args = (x, y, cos, sin, h, t, d // 2, number(x, sign), *at, steps[0], steps[2], total)
        spread(name, x, total, args)
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
