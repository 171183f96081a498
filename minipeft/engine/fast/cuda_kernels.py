"""On a GPU, kernels of our own: their text, compiled once for each type, and how they are started."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from minipeft.engine.backend import xp
from minipeft.engine.tensor import Array

MANY = 64  # arrays of a kernel that updates several

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
// gradients are added to `more`, which may be null, or be where they go
extern "C" __global__ void rms_backward(const T* g, const T* x, const T* w, const T* rstd, const T* more, T* gx, int n) {
    g = ROW(g, n); x = ROW(x, n); gx = ROW(gx, n); if (more) more = ROW(more, n);
    T r = rstd[blockIdx.x], s = 0;
    EACH(i, n) s += g[i] * w[i] * x[i];
    T along = sum_of(s) / n * r * r;
    EACH(i, n) gx[i] = (g[i] * w[i] - x[i] * along) * r + (more ? more[i] : (T)0);
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
extern "C" __global__ void layer_backward(const T* g, const T* x, const T* w, const T* mean, const T* rstd, const T* more, T* gx, int n) {
    g = ROW(g, n); x = ROW(x, n); gx = ROW(gx, n); if (more) more = ROW(more, n);
    T m = mean[blockIdx.x], r = rstd[blockIdx.x], s = 0, along = 0;
    EACH(i, n) { T gw = g[i] * w[i]; s += gw; along += gw * (x[i] - m) * r; }
    s = sum_of(s) / n;
    along = sum_of(along) / n;
    EACH(i, n) gx[i] = (g[i] * w[i] - s - (x[i] - m) * r * along) * r + (more ? more[i] : (T)0);
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
// (b, h, t, 2 half) at strides xb, xh, xt -> strides yb, yh, yt; cos and sin at strides cb, ct; sign turns back. Of both halves WIDE numbers
// that lie together at a time
struct __align__(16) Four { T at[4]; };
template <int WIDE, typename Some>
__device__ __forceinline__ void turn(const T* x, T* y, const T* cos_, const T* sin_, unsigned h, unsigned t, unsigned half, T sign, long long xb, long long xh, long long xt,
                                     long long yb, long long yh, long long yt, long long cb, long long ct, unsigned total) {
    for (unsigned j = blockIdx.x * blockDim.x + threadIdx.x; j < total; j += gridDim.x * blockDim.x) {
        unsigned i = j % (half / WIDE) * WIDE, at = j / (half / WIDE), pos = at % t, head = at / t % h, row = at / t / h;
        const T* from = x + row * xb + head * xh + pos * xt + i;
        T* to = y + row * yb + head * yh + pos * yt + i;
        Some lo = *(const Some*)from, hi = *(const Some*)(from + half);
        Some c = *(const Some*)(cos_ + row * cb + pos * ct + i), s = *(const Some*)(sin_ + row * cb + pos * ct + i), low, high;
        for (int e = 0; e < WIDE; e++) {
            low.at[e] = lo.at[e] * c.at[e] - hi.at[e] * sign * s.at[e];
            high.at[e] = hi.at[e] * c.at[e] + lo.at[e] * sign * s.at[e];
        }
        *(Some*)to = low;
        *(Some*)(to + half) = high;
    }
}
struct One { T at[1]; };
#define ROPE const T *x, T *y, const T *cos_, const T *sin_, int h, int t, int half, T sign, long long xb, long long xh, long long xt, long long yb, long long yh, long long yt, long long cb, long long ct, int total
extern "C" __global__ void rope(ROPE) { turn<1, One>(x, y, cos_, sin_, h, t, half, sign, xb, xh, xt, yb, yh, yt, cb, ct, total); }
extern "C" __global__ void rope_by_four(ROPE) { turn<4, Four>(x, y, cos_, sin_, h, t, half, sign, xb, xh, xt, yb, yh, yt, cb, ct, total); }
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
// AdamW in place, of `count` arrays, which end at `end` if they are put one after the other; t, the number of the step, and lr lie on
// the device
struct Many { T *x[MANY], *g[MANY], *m[MANY], *v[MANY]; double factor[MANY]; long long end[MANY], count; };
extern "C" __global__ void adamw(const Many many, const int* t, const double* lr_, double beta1, double beta2, double eps, double decay) {
    T fix1 = 1 - pow(beta1, (double)*t), fix2 = sqrt(1 - pow(beta2, (double)*t)), b1 = beta1, b2 = beta2, e = eps;
    int which = 0;
    for (long long j = blockIdx.x * (long long)blockDim.x + threadIdx.x; j < many.end[many.count - 1]; j += (long long)gridDim.x * blockDim.x) {
        while (j >= many.end[which]) which++;
        long long i = which ? j - many.end[which - 1] : j;
        double lr = *lr_ * many.factor[which];
        T shrink = 1 - lr * decay, step = lr / fix1;
        T d = many.g[which][i], a = b1 * many.m[which][i] + (T)(1 - beta1) * d, b = b2 * many.v[which][i] + (T)(1 - beta2) * d * d;
        many.m[which][i] = a;
        many.v[which][i] = b;
        many.x[which][i] = shrink * many.x[which][i] - step * a / (sqrt(b) / fix2 + e);
    }
}
"""


@cache
def _module(dtype: str) -> Any:
    type_ = {"float32": "float", "float64": "double"}[dtype]
    return xp.RawModule(code=f"#define T {type_}\n#define MANY {MANY}\n{_SOURCE}", options=("-std=c++17",))


@cache
def _kernel(name: str, dtype: str) -> Any:
    return _module(dtype).get_function(name)


def run(name: str, like: Array, blocks: int, args: tuple, width: int = 256) -> None:
    """Start a kernel: a block for every row, with as many threads as a row of `width` has work for."""
    threads = min(256, max(32, 32 * math.ceil(width / 64)))
    if blocks:
        _kernel(name, like.dtype.name)((blocks,), (threads,), args)


def spread(name: str, like: Array, n: int, args: tuple) -> None:
    """Start a kernel over n numbers."""
    if n:
        _kernel(name, like.dtype.name)((min(65535, math.ceil(n / 256)),), (256,), args)


def dense(*arrays: Array) -> list[Array]:
    return [xp.ascontiguousarray(a) for a in arrays]


def number(like: Array, x: float) -> Any:
    return like.dtype.type(x)


@cache
def elementwise(given: str, made: str, body: str, name: str) -> Any:
    return xp.ElementwiseKernel(given, made, body, name)


@cache
def _text(files: tuple[str, ...], macros: tuple[tuple[str, Any], ...]) -> Any:
    folder = Path(__file__).parent
    code = "".join(f"#define {name} {value}\n" for name, value in macros)
    code += "".join((folder / f"{file}.cu").read_text("utf-8") for file in files)
    return xp.RawModule(code=code, options=("-std=c++17",))


@cache
def on_tensor_cores(file: str, name: str, shared: int = 0, **macros: Any) -> Any:
    """A kernel of a .cu file beside this one, compiled with these macros, that may take so many bytes of shared memory."""
    kernel = _text(("mma", "tiles", file), tuple(sorted(macros.items()))).get_function(name)
    if shared > 48 << 10:  # more than a kernel has unasked
        kernel.max_dynamic_shared_size_bytes = shared
    return kernel


def aligned(*arrays: Array) -> bool:
    """Whether rows of these arrays, dense along the last axis, lie at multiples of 16 bytes and are whole numbers of these long."""
    return all(
        a.data.ptr % 16 == 0 and a.shape[-1] * a.itemsize % 16 == 0 and all(step % 16 == 0 for step in a.strides[:-1])
        for a in arrays
    )
