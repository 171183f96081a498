"""On a GPU: matrix products by cuBLAS, and some ops in one kernel each, in fewer passes over memory.

CuPy refuses cuBLAS while a stream is captured, so products call the library that CuPy has loaded by themselves, with a
workspace of their own; so does `@` while a graph is recorded. A float32 product is exact to float32 unless `tf32` is on
(opt-in: `MINIPEFT_TF32=1`). The bits of bfloat16 (uint16) multiply to float32.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import lowest, xp
from minipeft.engine.bfloat16 import Bfloat16
from minipeft.engine.fast import replaces
from minipeft.engine.fast.layout import heads_last, in_blocks
from minipeft.engine.ops import operands, rows

Array = Any

tf32 = os.environ.get("MINIPEFT_TF32", "") not in ("", "0")


def allow_tf32(on: bool) -> None:
    """Whether float32 products may round their factors to the 11 bits of TensorFloat-32."""
    global tf32
    tf32 = on


# --- matrix products --------------------------------------------------------------------------------------------------

_TYPES = {  # of factors: CUDA's number for them, for the result; its type; cuBLAS's arithmetic; the type of alpha
    "float32": (0, 0, "float32", 68, ctypes.c_float),
    "float64": (1, 1, "float64", 70, ctypes.c_double),
    "uint16": (14, 0, "float32", 68, ctypes.c_float),
}
_TF32 = 77
_WORKSPACE = 32 << 20  # bytes; what cuBLAS asks for on Hopper


class _Blas:
    """cuBLAS with a handle and a workspace of our own, which a capture may use."""

    def __init__(self) -> None:
        xp.cuda.device.get_cublas_handle()  # loads the library
        mapped = {
            line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libcublas.so" in line
        }
        self.library = ctypes.CDLL(min(mapped))
        self.handle = ctypes.c_void_p()
        _worked(self.library.cublasCreate_v2(ctypes.byref(self.handle)))
        self.workspace = xp.cuda.alloc(_WORKSPACE)
        self.stream: int | None = None
        long, pointer, int_ = ctypes.c_longlong, ctypes.c_void_p, ctypes.c_int
        self.gemm = self.library.cublasGemmStridedBatchedEx
        matrix: list[Any] = [pointer, int_, int_, long]
        self.gemm.argtypes = [pointer, *[int_] * 5, pointer, *matrix, *matrix, pointer, *matrix, *[int_] * 3]

    def on_current_stream(self) -> None:
        stream = xp.cuda.get_current_stream().ptr
        if stream != self.stream:
            _worked(self.library.cublasSetStream_v2(self.handle, ctypes.c_void_p(stream)))
            memory, size = ctypes.c_void_p(self.workspace.ptr), ctypes.c_size_t(_WORKSPACE)
            _worked(self.library.cublasSetWorkspace_v2(self.handle, memory, size))
            self.stream = stream


def _worked(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS failed with status {status}")


@cache
def _blas() -> _Blas:
    return _Blas()


def _layout(a: Array) -> tuple[int, int] | None:
    """(whether transposed, distance of rows) of the last two axes as cuBLAS sees them; None if neither axis is dense."""
    (rows, cols), (down, right) = a.shape[-2:], (s // a.itemsize for s in a.strides[-2:])
    if (right == 1 or cols == 1) and (rows == 1 or down >= cols):
        return 0, max(down if rows > 1 else cols, cols, 1)
    if (down == 1 or rows == 1) and (cols == 1 or right >= rows):
        return 1, max(right if cols > 1 else rows, rows, 1)
    return None


def product(x: Array, y: Array, out: Array | None = None, alpha: float = 1.0, beta: float = 0.0) -> Array:
    """alpha · x @ y + beta · out, written to `out` if given. Axes before the last two broadcast, uncopied.

    Factors in uint16 are the bits of bfloat16; their product is float32.
    """
    kind = x.dtype.name
    if kind not in _TYPES or y.dtype != x.dtype or x.ndim < 2 or y.ndim < 2:
        z = x @ y if alpha == 1 else alpha * (x @ y)
        if out is None:
            return z
        out[...] = z if beta == 0 else z + beta * out
        return out
    type_, type_out, made, arithmetic, number = _TYPES[kind]
    m, k, n = x.shape[-2], x.shape[-1], y.shape[-1]
    stack = xp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    if out is None:
        out = xp.empty((*stack, m, n), made)
    if not out.size:
        return out
    if not k:
        out *= beta
        return out
    if _layout(x) is None:
        x = xp.ascontiguousarray(x)
    if _layout(y) is None:
        y = xp.ascontiguousarray(y)
    x_turned, x_step = _layout(x)  # type: ignore[misc]
    y_turned, y_step = _layout(y)  # type: ignore[misc]
    placed = _layout(out)
    if placed is None or placed[0]:  # written elsewhere first
        out[...] = product(x, y, alpha=alpha) + (beta * out if beta else 0)
        return out
    axes = _merged(
        stack, [xp.broadcast_to(a, (*stack, *a.shape[-2:])).strides[:-2] for a in (x, y)] + [out.strides[:-2]]
    )
    *outer, (count, along_x, along_y, along_out) = axes or [(1, 0, 0, 0)]
    blas = _blas()
    if tf32 and kind == "float32":
        arithmetic = _TF32
    blas.on_current_stream()
    item, item_out = x.itemsize, out.itemsize
    a, b = number(alpha), number(beta)
    for at in itertools.product(*(range(size) for size, *_ in outer)):
        px, py, po = (
            p.data.ptr + sum(i * axis[1 + which] for i, axis in zip(at, outer, strict=True))
            for which, p in enumerate((x, y, out))
        )
        # cuBLAS counts columns first: what is asked of it is outᵀ = yᵀ xᵀ
        _worked(blas.gemm(
            blas.handle, y_turned, x_turned, n, m, k, ctypes.byref(a), py, type_, y_step, along_y // item,
            px, type_, x_step, along_x // item, ctypes.byref(b),
            po, type_out, placed[1], along_out // item_out, count, arithmetic, -1,
        ))  # fmt: skip
    return out


def _merged(stack: tuple[int, ...], strides: list[tuple[int, ...]]) -> list[tuple[int, int, int, int]]:
    """The axes of a stack, (size, strides of x, y and out in bytes), those that lie evenly behind each other as one."""
    out: list[tuple[int, int, int, int]] = []
    for size, *steps in zip(stack, *strides, strict=True):
        if size == 1:
            continue
        if out and all(before == size * step for before, step in zip(out[-1][1:], steps, strict=True)):
            out[-1] = (out[-1][0] * size, *steps)  # type: ignore[assignment]
        else:
            out.append((size, *steps))  # type: ignore[arg-type]
    return out


# --- kernels ----------------------------------------------------------------------------------------------------------

_SOURCE = r"""
#define LOWEST ((T)-__longlong_as_double(0x7ff0000000000000LL))
__device__ __forceinline__ T sum_of(T v) {  // over the threads of a block, in one order always
    __shared__ T part[32];
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    __syncthreads();
    if (!(threadIdx.x & 31)) part[threadIdx.x >> 5] = v;
    __syncthreads();
    v = 0;
    for (int i = 0; i < (int)blockDim.x >> 5; i++) v += part[i];
    return v;
}
__device__ __forceinline__ T max_of(T v) {
    __shared__ T part[32];
    for (int o = 16; o; o >>= 1) v = max(v, __shfl_xor_sync(0xffffffffu, v, o));
    __syncthreads();
    if (!(threadIdx.x & 31)) part[threadIdx.x >> 5] = v;
    __syncthreads();
    v = part[0];
    for (int i = 1; i < (int)blockDim.x >> 5; i++) v = max(v, part[i]);
    return v;
}
#define EACH(i, n) for (int i = threadIdx.x; i < (n); i += blockDim.x)
#define ROW(a, n) ((a) + (long long)blockIdx.x * (n))

extern "C" __global__ void rms_forward(const T* x, const T* w, T* y, T* rstd, int n, T eps) {
    x = ROW(x, n); y = ROW(y, n);
    T s = 0;
    EACH(i, n) s += x[i] * x[i];
    T r = 1 / sqrt(sum_of(s) / n + eps);
    EACH(i, n) y[i] = x[i] * r * w[i];
    if (!threadIdx.x) rstd[blockIdx.x] = r;
}
extern "C" __global__ void rms_backward(const T* g, const T* x, const T* w, const T* rstd, T* gx, int n) {
    g = ROW(g, n); x = ROW(x, n); gx = ROW(gx, n);
    T r = rstd[blockIdx.x], s = 0;
    EACH(i, n) s += g[i] * w[i] * x[i];
    T along = sum_of(s) / n * r * r;
    EACH(i, n) gx[i] = (g[i] * w[i] - x[i] * along) * r;
}
extern "C" __global__ void layer_forward(const T* x, const T* w, const T* b, T* y, T* mean, T* rstd, int n, T eps) {
    x = ROW(x, n); y = ROW(y, n);
    T s = 0;
    EACH(i, n) s += x[i];
    T m = sum_of(s) / n;
    s = 0;
    EACH(i, n) s += (x[i] - m) * (x[i] - m);
    T r = 1 / sqrt(sum_of(s) / n + eps);
    EACH(i, n) y[i] = (x[i] - m) * r * w[i] + b[i];
    if (!threadIdx.x) { mean[blockIdx.x] = m; rstd[blockIdx.x] = r; }
}
extern "C" __global__ void layer_backward(const T* g, const T* x, const T* w, const T* mean, const T* rstd, T* gx, int n) {
    g = ROW(g, n); x = ROW(x, n); gx = ROW(gx, n);
    T m = mean[blockIdx.x], r = rstd[blockIdx.x], s = 0, along = 0;
    EACH(i, n) { T gw = g[i] * w[i]; s += gw; along += gw * (x[i] - m) * r; }
    s = sum_of(s) / n;
    along = sum_of(along) / n;
    EACH(i, n) gx[i] = (g[i] * w[i] - s - (x[i] - m) * r * along) * r;
}
// p (rows of s), in place: softmax(scale p + bias); the bias lies at strides over (b, h, t, s)
extern "C" __global__ void softmax_rows(T* p, const T* bias, T* tops, int s, int t, int h, T scale, long long sb, long long sh, long long st, long long ss) {
    long long row = blockIdx.x;
    p += row * s;
    if (bias) bias += (row / t / h) * sb + (row / t % h) * sh + (row % t) * st;
    T top = LOWEST;
    EACH(i, s) { T v = p[i] * scale + (bias ? bias[i * ss] : (T)0); p[i] = v; top = max(top, v); }
    top = max_of(top);
    if (!threadIdx.x) tops[row] = top;
    T total = 0;
    EACH(i, s) { T v = exp(p[i] - top); p[i] = v; total += v; }
    total = 1 / sum_of(total);
    EACH(i, s) p[i] *= total;
}
extern "C" __global__ void softmax_backward(const T* p, T* g, const T* tops, T hidden, int s) {
    T sees = tops[blockIdx.x] <= hidden ? 0 : 1;  // all keys are hidden: scores were lost in rounding
    p = ROW(p, s); g = ROW(g, s);
    T dot = 0;
    EACH(i, s) dot += p[i] * g[i];
    dot = sum_of(dot);
    EACH(i, s) g[i] = sees * p[i] * (g[i] - dot);
}
extern "C" __global__ void entropy_forward(const T* x, const long long* labels, long long ignore, T* lse, T* loss, int n) {
    x = ROW(x, n);
    T top = LOWEST, total = 0;
    EACH(i, n) top = max(top, x[i]);
    top = max_of(top);
    EACH(i, n) total += exp(x[i] - top);
    total = log(sum_of(total)) + top;
    if (!threadIdx.x) {
        long long y = labels[blockIdx.x];
        lse[blockIdx.x] = total;
        loss[blockIdx.x] = y == ignore ? (T)0 : y < 0 || y >= n ? (T)(0.0 / 0.0) : total - x[y];
    }
}
extern "C" __global__ void entropy_backward(const T* x, const long long* labels, long long ignore, const T* lse, const T* g, const T* count, T* gx, int n) {
    x = ROW(x, n); gx = ROW(gx, n);
    long long y = labels[blockIdx.x];
    T by = y == ignore ? (T)0 : *g / *count, l = lse[blockIdx.x];
    EACH(i, n) gx[i] = by * (exp(x[i] - l) - (i == y ? (T)1 : (T)0));
}
// (b, h, t, 2 half) at strides xb, xh, xt -> strides yb, yh, yt; cos and sin at strides cb, ct; sign turns back
extern "C" __global__ void rope(const T* x, T* y, const T* cos_, const T* sin_, int h, int t, int half, T sign, long long xb, long long xh, long long xt,
                                long long yb, long long yh, long long yt, long long cb, long long ct, long long total) {
    for (long long j = blockIdx.x * (long long)blockDim.x + threadIdx.x; j < total; j += (long long)gridDim.x * blockDim.x) {
        int i = j % half;
        long long at = j / half, pos = at % t, head = at / t % h, row = at / t / h;
        T c = cos_[row * cb + pos * ct + i], s = sign * sin_[row * cb + pos * ct + i];
        const T* from = x + row * xb + head * xh + pos * xt;
        T* to = y + row * yb + head * yh + pos * yt;
        T lo = from[i], hi = from[i + half];
        to[i] = lo * c - hi * s;
        to[i + half] = hi * c + lo * s;
    }
}
// the bits of bfloat16, four numbers at a time: x and y lie at multiples of 16 bytes
__device__ __forceinline__ unsigned upper_half(float v) {
    unsigned bits = __float_as_uint(v);
    return isnan(v) ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
extern "C" __global__ void to_bfloat16(const float* x, unsigned short* y, long long n) {
    long long step = 4LL * gridDim.x * blockDim.x;
    for (long long i = 4 * (blockIdx.x * (long long)blockDim.x + threadIdx.x); i < n; i += step) {
        if (i + 4 <= n) {
            float4 v = *(const float4*)(x + i);
            unsigned low = upper_half(v.x) | upper_half(v.y) << 16, high = upper_half(v.z) | upper_half(v.w) << 16;
            *(uint2*)(y + i) = make_uint2(low, high);
        } else {
            for (long long j = i; j < n; j++) y[j] = upper_half(x[j]);
        }
    }
}
// AdamW in place; t, the number of the step, and lr lie on the device
extern "C" __global__ void adamw(T* x, const T* g, T* m, T* v, const int* t, const double* lr_, double factor, double beta1, double beta2, double eps, double decay, long long n) {
    double lr = *lr_ * factor;
    T fix1 = 1 - pow(beta1, (double)*t), fix2 = sqrt(1 - pow(beta2, (double)*t)), b1 = beta1, b2 = beta2;
    T shrink = 1 - lr * decay, step = lr / fix1, e = eps;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
        T d = g[i], a = b1 * m[i] + (T)(1 - beta1) * d, b = b2 * v[i] + (T)(1 - beta2) * d * d;
        m[i] = a;
        v[i] = b;
        x[i] = shrink * x[i] - step * a / (sqrt(b) / fix2 + e);
    }
}
"""


@cache
def _module(dtype: str) -> Any:
    type_ = {"float32": "float", "float64": "double"}[dtype]
    return xp.RawModule(code=f"#define T {type_}\n{_SOURCE}", options=("-std=c++17",))


@cache
def _kernel(name: str, dtype: str) -> Any:
    return _module(dtype).get_function(name)


def _run(name: str, like: Array, blocks: int, args: tuple, width: int = 256) -> None:
    """Start a kernel: a block for every row, with as many threads as a row of `width` has work for."""
    threads = min(256, max(32, 32 * math.ceil(width / 64)))
    if blocks:
        _kernel(name, like.dtype.name)((blocks,), (threads,), args)


def _spread(name: str, like: Array, n: int, args: tuple) -> None:
    """Start a kernel over n numbers."""
    if n:
        _kernel(name, like.dtype.name)((min(65535, math.ceil(n / 256)),), (256,), args)


def _dense(*arrays: Array) -> list[Array]:
    return [xp.ascontiguousarray(a) for a in arrays]


def _number(like: Array, x: float) -> Any:
    return like.dtype.type(x)


def _factors(x: Array, W: Any) -> tuple[Array, Array]:
    """x and W as they meet in `product`: beside a W held in bfloat16 the bits of both."""
    if type(W) is not Bfloat16 or x.dtype != W.dtype:
        return operands(x, W)
    x = xp.ascontiguousarray(x)
    x = x.copy() if x.data.ptr % 16 else x
    bits = xp.empty(x.shape, xp.uint16)
    _spread("to_bfloat16", x, -(-x.size // 4), (x, bits, x.size))
    return bits, W.values


@replaces(ops.linear, "cupy")
def linear(x: Array, W: Any, b: Array | None = None) -> Any:
    x2, V = _factors(rows(x), W)
    y = product(x2, V.T)
    if b is not None:
        y += b
    shape = x.shape
    vjps = (
        lambda g: product(*_factors(rows(g), W)).reshape(shape),
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
    xV, V = _factors(x2, W)
    y = product(xV, V.T)
    h = product(x2, A.T, alpha=s)
    product(h, B.T, out=y, beta=1.0)
    if b is not None:
        y += b

    def vjp(g: Array, wanted: tuple) -> tuple:
        g2 = rows(g)
        gx = product(*_factors(g2, W)) if wanted[0] else None
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


@replaces(ops.rms_norm, "cupy")
def rms_norm(x: Array, w: Array, *, eps: float) -> Any:
    x, w = _dense(x, w)
    n = x.shape[-1]
    y, rstd = xp.empty(x.shape, x.dtype), xp.empty(x.size // max(n, 1), x.dtype)
    _run("rms_forward", x, rstd.size, (x, w, y, rstd, n, _number(x, eps)), n)

    def vjp(g: Array, wanted: tuple) -> tuple:
        (g,), gx, gw = _dense(g), None, None
        if wanted[0]:
            gx = xp.empty(x.shape, x.dtype)
            _run("rms_backward", x, rstd.size, (g, x, w, rstd, gx, n), n)
        if wanted[1]:
            gw = (g * x).reshape(-1, n) * rstd[:, None]
        return gx, gw

    return y, vjp


@replaces(ops.layer_norm, "cupy")
def layer_norm(x: Array, w: Array, b: Array, *, eps: float) -> Any:
    x, w, b = _dense(x, w, b)
    n = x.shape[-1]
    y, mean, rstd = xp.empty(x.shape, x.dtype), *(xp.empty(x.size // max(n, 1), x.dtype) for _ in range(2))
    _run("layer_forward", x, rstd.size, (x, w, b, y, mean, rstd, n, _number(x, eps)), n)

    def vjp(g: Array, wanted: tuple) -> tuple:
        (g,), gx, gw = _dense(g), None, None
        if wanted[0]:
            gx = xp.empty(x.shape, x.dtype)
            _run("layer_backward", x, rstd.size, (g, x, w, mean, rstd, gx, n), n)
        if wanted[1]:
            gw = g.reshape(-1, n) * ((x.reshape(-1, n) - mean[:, None]) * rstd[:, None])
        return gx, gw, g if wanted[2] else None

    return y, vjp


@cache
def _elementwise(given: str, made: str, body: str, name: str) -> Any:
    return xp.ElementwiseKernel(given, made, body, name)


_SIGMOID = "T s = x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));"


@replaces(ops.silu_mul, "cupy")
def silu_mul(x: Array, y: Array) -> Any:
    z = _elementwise("T x, T y", "T z", _SIGMOID + "z = x * s * y;", "silu_mul")(x, y)

    def vjp(g: Array, wanted: tuple) -> tuple:
        body = _SIGMOID + "gx = g * y * s * (1 + x * (1 - s)); gy = g * x * s;"
        if all(wanted):
            return tuple(_elementwise("T x, T y, T g", "T gx, T gy", body, "silu_mul_backward")(x, y, g))
        one = "gx" if wanted[0] else "gy"
        body = _SIGMOID + ("gx = g * y * s * (1 + x * (1 - s));" if wanted[0] else "gy = g * x * s;")
        found = _elementwise("T x, T y, T g", f"T {one}", body, f"silu_mul_{one}")(x, y, g)
        return (found, None) if wanted[0] else (None, found)

    return z, vjp


@replaces(ops.gelu, "cupy")
def gelu(x: Array) -> Any:
    y = _elementwise("T x", "T y", "y = x * (T)0.5 * (1 + erf(x * (T)0.70710678118654752));", "gelu")(x)
    body = """T P = (T)0.5 * (1 + erf(x * (T)0.70710678118654752));
              gx = g * (P + x * exp((T)-0.5 * x * x) * (T)0.39894228040143268);"""
    return y, (lambda g: _elementwise("T x, T g", "T gx", body, "gelu_backward")(x, g),)


@replaces(ops.gelu_tanh, "cupy")
def gelu_tanh(x: Array) -> Any:
    t = "T c = 0.79788456080286536, a = 0.044715, t = tanh(c * x * (1 + a * x * x));"
    y = _elementwise("T x", "T y", t + "y = (T)0.5 * x * (1 + t);", "gelu_tanh")(x)
    body = t + "gx = g * ((T)0.5 * (1 + t) + (T)0.5 * x * (1 - t * t) * c * (1 + 3 * a * x * x));"
    return y, (lambda g: _elementwise("T x, T g", "T gx", body, "gelu_tanh_backward")(x, g),)


@replaces(ops.rope, "cupy")
def rope(x: Array, *, cos: Array, sin: Array) -> Any:
    b, h, t, d = x.shape
    steps = [s // x.itemsize for s in xp.broadcast_to(cos, (b, 1, t, d // 2)).strides]
    if cos.strides != sin.strides or steps[3] != 1:
        cos, sin = _dense(cos, sin)
        steps = [s // x.itemsize for s in xp.broadcast_to(cos, (b, 1, t, d // 2)).strides]

    def turned(x: Array, y: Array, sign: float) -> Array:
        if x.strides[-1] != x.itemsize:
            x = xp.ascontiguousarray(x)
        at = [s // x.itemsize for s in (*x.strides[:3], *y.strides[:3])]
        total = x.size // 2
        args = (x, y, cos, sin, h, t, d // 2, _number(x, sign), *at, steps[0], steps[2], total)
        _spread("rope", x, total, args)
        return y

    y = turned(x, xp.empty(x.shape, x.dtype), 1.0)
    return y, (lambda g: turned(g, heads_last(b, t, h, d, x.dtype), -1.0),)


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
        args = (p, 0 if bias is None else bias, tops, s, t, h, _number(p, scale), *at)
        _run("softmax_rows", p, b * h * t if s else 0, args, s)
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
            hidden = _number(p, lowest(dtype) / 4)
            _run("softmax_backward", p, b * h * t if s else 0, (p, gs, tops, hidden, s), s)
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


@replaces(ops.cross_entropy, "cupy")
def cross_entropy(logits: Array, *, labels: Array, ignore: int = -100) -> Any:
    """A label out of range makes the loss NaN: a device is not waited for to refuse it."""
    V = logits.shape[-1]
    x = xp.ascontiguousarray(logits.reshape(-1, V))
    y = xp.ascontiguousarray(labels.reshape(-1)).astype("int64", copy=False)
    kept = y != ignore
    count = xp.maximum(kept.sum(), 1).astype(x.dtype)
    lse, each = xp.empty(len(x), x.dtype), xp.empty(len(x), x.dtype)
    _run("entropy_forward", x, len(x), (x, y, ignore, lse, each, V), V)
    loss = each.sum() / count

    def vjp(g: Array) -> Array:
        gx = xp.empty(x.shape, x.dtype)
        g = xp.ascontiguousarray(g, dtype=x.dtype)
        _run("entropy_backward", x, len(x), (x, y, ignore, lse, g, count, gx, V), V)
        return gx.reshape(logits.shape)

    return loss, (vjp,)
