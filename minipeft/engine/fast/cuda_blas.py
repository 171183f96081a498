"""On a GPU, matrix products by cuBLAS itself.

CuPy refuses cuBLAS while a stream is captured, so products call the library that CuPy has loaded by themselves, with a
workspace of their own; so does `@` while a graph is recorded. A float32 product is exact to float32 unless `tf32` is on
(opt-in: `MINIPEFT_TF32=1`). The bits of bfloat16 (uint16) multiply to float32.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from functools import cache
from pathlib import Path
from typing import Any

from minipeft.engine.backend import xp
from minipeft.engine.tensor import Array

tf32 = os.environ.get("MINIPEFT_TF32", "") not in ("", "0")


def allow_tf32(on: bool) -> None:
    """Whether float32 products may round their factors to the 11 bits of TensorFloat-32."""
    global tf32
    tf32 = on


TYPES = {  # of factors: CUDA's number for them, for the result; its type; cuBLAS's arithmetic; the type of alpha
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
    if kind not in TYPES or y.dtype != x.dtype or x.ndim < 2 or y.ndim < 2:
        z = x @ y if alpha == 1 else alpha * (x @ y)
        if out is None:
            return z
        out[...] = z if beta == 0 else z + beta * out
        return out
    type_, type_out, made, arithmetic, number = TYPES[kind]
    m, k, n = x.shape[-2], x.shape[-1], y.shape[-1]
    stack = xp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    if out is None:
        out = xp.empty((*stack, m, n), made)
    if not out.size:
        return out
    if not k:
        out[...] = beta * out if beta else 0
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
