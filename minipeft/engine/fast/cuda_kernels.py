"""On a GPU, kernels of our own: their text, compiled once for each type, and how they are started."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from minipeft.engine.backend import xp
from minipeft.engine.tensor import Array

TYPES = {"float32": "float", "float64": "double"}
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

// norms of rows of n, WIDE numbers of a row at a time: NAME and NAME_by_four
template <int WIDE> struct __align__(WIDE * sizeof(T) > 16 ? 16 : WIDE * sizeof(T)) Some { T at[WIDE]; };
#define SOME(x, from) Some<WIDE> x = *(const Some<WIDE>*)((from) + i)
#define EACH_SOME(n) for (int i = WIDE * threadIdx.x; i < (n); i += WIDE * blockDim.x)
#define EACH_OF_SOME for (int e = 0; e < WIDE; e++)
#define BOTH(name, parameters, arguments)                                                  \
    extern "C" __global__ void name parameters { name##_of<1> arguments; }                 \
    extern "C" __global__ void name##_by_four parameters { name##_of<4> arguments; }
template <int WIDE> __device__ __forceinline__ void rms_forward_of(const T* x, const T* w, T* y, T* rstd, int n, T eps) {
    x = ROW(x, n); y = ROW(y, n);
    T s = 0;
    EACH_SOME(n) { SOME(a, x); EACH_OF_SOME s += a.at[e] * a.at[e]; }
    T r = 1 / sqrt(sum_of(s) / n + eps);
    EACH_SOME(n) { SOME(a, x); SOME(b, w); EACH_OF_SOME a.at[e] = a.at[e] * r * b.at[e]; *(Some<WIDE>*)(y + i) = a; }
    if (!threadIdx.x) rstd[blockIdx.x] = r;
}
BOTH(rms_forward, (const T* x, const T* w, T* y, T* rstd, int n, T eps), (x, w, y, rstd, n, eps))
// gradients are added to `more`, which may be null, or be where they go
template <int WIDE> __device__ __forceinline__ void rms_backward_of(const T* g, const T* x, const T* w, const T* rstd, const T* more, T* gx, int n) {
    g = ROW(g, n); x = ROW(x, n); gx = ROW(gx, n); if (more) more = ROW(more, n);
    T r = rstd[blockIdx.x], s = 0;
    EACH_SOME(n) { SOME(a, g); SOME(b, w); SOME(c, x); EACH_OF_SOME s += a.at[e] * b.at[e] * c.at[e]; }
    T along = sum_of(s) / n * r * r;
    EACH_SOME(n) {
        SOME(a, g); SOME(b, w); SOME(c, x);
        EACH_OF_SOME a.at[e] = (a.at[e] * b.at[e] - c.at[e] * along) * r;
        if (more) { SOME(d, more); EACH_OF_SOME a.at[e] += d.at[e]; }
        *(Some<WIDE>*)(gx + i) = a;
    }
}
BOTH(rms_backward, (const T* g, const T* x, const T* w, const T* rstd, const T* more, T* gx, int n), (g, x, w, rstd, more, gx, n))
template <int WIDE> __device__ __forceinline__ void layer_forward_of(const T* x, const T* w, const T* b, T* y, T* mean, T* rstd, int n, T eps) {
    x = ROW(x, n); y = ROW(y, n);
    T s = 0;
    EACH_SOME(n) { SOME(a, x); EACH_OF_SOME s += a.at[e]; }
    T m = sum_of(s) / n;
    s = 0;
    EACH_SOME(n) { SOME(a, x); EACH_OF_SOME s += (a.at[e] - m) * (a.at[e] - m); }
    T r = 1 / sqrt(sum_of(s) / n + eps);
    EACH_SOME(n) { SOME(a, x); SOME(c, w); SOME(d, b); EACH_OF_SOME a.at[e] = (a.at[e] - m) * r * c.at[e] + d.at[e]; *(Some<WIDE>*)(y + i) = a; }
    if (!threadIdx.x) { mean[blockIdx.x] = m; rstd[blockIdx.x] = r; }
}
BOTH(layer_forward, (const T* x, const T* w, const T* b, T* y, T* mean, T* rstd, int n, T eps), (x, w, b, y, mean, rstd, n, eps))
template <int WIDE> __device__ __forceinline__ void layer_backward_of(const T* g, const T* x, const T* w, const T* mean, const T* rstd, const T* more, T* gx, int n) {
    g = ROW(g, n); x = ROW(x, n); gx = ROW(gx, n); if (more) more = ROW(more, n);
    T m = mean[blockIdx.x], r = rstd[blockIdx.x], s = 0, along = 0;
    EACH_SOME(n) { SOME(a, g); SOME(b, w); SOME(c, x); EACH_OF_SOME { T gw = a.at[e] * b.at[e]; s += gw; along += gw * (c.at[e] - m) * r; } }
    s = sum_of(s) / n;
    along = sum_of(along) / n;
    EACH_SOME(n) {
        SOME(a, g); SOME(b, w); SOME(c, x);
        EACH_OF_SOME a.at[e] = (a.at[e] * b.at[e] - s - (c.at[e] - m) * r * along) * r;
        if (more) { SOME(d, more); EACH_OF_SOME a.at[e] += d.at[e]; }
        *(Some<WIDE>*)(gx + i) = a;
    }
}
BOTH(layer_backward, (const T* g, const T* x, const T* w, const T* mean, const T* rstd, const T* more, T* gx, int n), (g, x, w, mean, rstd, more, gx, n))
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
#define ROPE (const T* x, T* y, const T* cos_, const T* sin_, int h_, int t_, int half_, T sign, long long xb, long long xh, long long xt, long long yb, long long yh, long long yt, long long cb, long long ct, int total_)
template <int WIDE> __device__ __forceinline__ void rope_of ROPE {
    const unsigned h = h_, t = t_, half = half_, total = total_;
    for (unsigned j = blockIdx.x * blockDim.x + threadIdx.x; j < total; j += gridDim.x * blockDim.x) {
        unsigned i = j % (half / WIDE) * WIDE, at = j / (half / WIDE), pos = at % t, head = at / t % h, row = at / t / h;
        const T *from = x + row * xb + head * xh + pos * xt, *cosines = cos_ + row * cb + pos * ct, *sines = sin_ + row * cb + pos * ct;
        T* to = y + row * yb + head * yh + pos * yt + i;
        SOME(lo, from); SOME(hi, from + half); SOME(c, cosines); SOME(s, sines);
        Some<WIDE> low, high;
        EACH_OF_SOME {
            low.at[e] = lo.at[e] * c.at[e] - hi.at[e] * sign * s.at[e];
            high.at[e] = hi.at[e] * c.at[e] + lo.at[e] * sign * s.at[e];
        }
        *(Some<WIDE>*)to = low;
        *(Some<WIDE>*)(to + half) = high;
    }
}
BOTH(rope, ROPE, (x, y, cos_, sin_, h_, t_, half_, sign, xb, xh, xt, yb, yh, yt, cb, ct, total_))
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
    return xp.RawModule(code=f"#define T {TYPES[dtype]}\n#define MANY {MANY}\n{_SOURCE}", options=("-std=c++17",))


@cache
def _kernel(name: str, dtype: str) -> Any:
    return _module(dtype).get_function(name)


def by_four(name: str, n: int, *arrays: Array) -> str:
    """The name of the kernel, of the two that there are of it, that is for these arrays: of rows of n, a whole number of fours or not."""
    return f"{name}_by_four" if n % 4 == 0 and aligned(*arrays) else name


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


def elementwise(given: str, made: str, body: str, name: str) -> Callable:
    """A function of arrays, as CuPy's ElementwiseKernel; of dense arrays alike four numbers are loaded and stored at a time."""

    def call(*arrays: Array) -> Any:
        one = arrays[0]
        alike = all(a.shape == one.shape and a.dtype == one.dtype and a.flags.c_contiguous for a in arrays)
        if (
            not alike
            or one.dtype.name not in TYPES
            or not one.size
            or one.size % 4
            or any(a.data.ptr % 16 for a in arrays)
        ):
            return _of_any(given, made, body, name)(*arrays)
        out = [xp.empty(one.shape, one.dtype) for _ in made.split(",")]
        blocks = min(65535, math.ceil(one.size / 1024))
        _by_four(given, made, body, name, one.dtype.name)((blocks,), (256,), (*arrays, *out, one.size // 4))
        return out[0] if len(out) == 1 else tuple(out)

    return call


@cache
def _of_any(given: str, made: str, body: str, name: str) -> Any:
    return xp.ElementwiseKernel(given, made, body, name)


@cache
def _by_four(given: str, made: str, body: str, name: str, dtype: str) -> Any:
    ins, outs = ([variable.split()[-1] for variable in some.split(",")] for some in (given, made))
    heads = [f"const T* {x}_" for x in ins] + [f"T* {x}_" for x in outs]
    code = f"""#define T {TYPES[dtype]}
    struct __align__(16) Four {{ T at[4]; }};
    extern "C" __global__ void {name}({", ".join(heads)}, long long n_) {{
        for (long long i_ = blockIdx.x * 256LL + threadIdx.x; i_ < n_; i_ += gridDim.x * 256LL) {{
            Four {", ".join([f"{x}4_ = ((const Four*){x}_)[i_]" for x in ins] + [f"{x}4_" for x in outs])};
            #pragma unroll
            for (int e_ = 0; e_ < 4; e_++) {{
                T {", ".join([f"{x} = {x}4_.at[e_]" for x in ins] + outs)};
                {body}
                {" ".join(f"{x}4_.at[e_] = {x};" for x in outs)}
            }}
            {" ".join(f"((Four*){x}_)[i_] = {x}4_;" for x in outs)}
        }}
    }}"""
    return xp.RawKernel(code, name, options=("-std=c++17",))


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
