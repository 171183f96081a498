"""CUDA graphs: a function recorded once and replayed, with what has to be different while it is recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minipeft.engine.backend import xp
from minipeft.engine.fast.cuda_blas import TYPES, product
from minipeft.engine.fast.cuda_kernels import MANY, dense, spread
from minipeft.engine.tensor import Array


def adamw(many: Sequence[tuple[Array, Array, Array, Array, float]], t: Array, lr: Array, settings: Any) -> None:
    """One step of AdamW in place, of many (x, gradient, m, v, factor); `t` (int32) and `lr` (float64) are numbers on the device."""
    o = settings
    for kind in dict.fromkeys(x.dtype for x, *_ in many):
        alike = [some for some in many if some[0].dtype == kind and some[0].size]
        for first in range(0, len(alike), MANY):
            some, table = alike[first : first + MANY], np.zeros(1, TABLE)
            arrays = list(zip(*(dense(x, g, m, v) for x, g, m, v, _ in some), strict=True))
            for name, column in zip("xgmv", arrays, strict=True):
                table[name][0, : len(some)] = [a.data.ptr for a in column]
            table["factor"][0, : len(some)] = [factor for *_, factor in some]
            table["end"][0, : len(some)] = np.cumsum([x.size for x, *_ in some])
            table["count"] = len(some)
            args = (table, t, lr, o.beta1, o.beta2, o.eps, o.weight_decay)
            spread("adamw", some[0][0], int(table["end"].max()), args)


TABLE = np.dtype(
    [*((name, "u8", MANY) for name in "xgmv"), ("factor", "f8", MANY), ("end", "i8", MANY), ("count", "i8")]
)


def watched_memory() -> Callable[[], int]:
    """From now on CuPy's arrays are counted: a function that tells the most bytes that were held at once."""

    class Counter(xp.cuda.MemoryHook):
        name = "counter"
        held = most = 0

        def malloc_postprocess(self, **about: Any) -> None:
            self.held += about["mem_size"]
            self.most = max(self.most, self.held)

        def free_preprocess(self, **about: Any) -> None:
            self.held -= about["mem_size"]

    counter = Counter()
    counter.__enter__()
    return lambda: counter.most


@contextlib.contextmanager
def _own_products() -> Iterator[None]:
    """Within this context `x @ y` of CuPy's arrays is `product`, for methods may write `@` where nothing is differentiated."""
    theirs = xp.ndarray.__matmul__

    def matmul(x: Array, y: Any) -> Any:
        own = type(y) is type(x) and x.ndim > 1 and y.ndim > 1 and x.dtype == y.dtype and x.dtype.name in TYPES
        return product(x, y) if own else theirs(x, y)

    xp.ndarray.__matmul__ = matmul
    try:
        yield
    finally:
        del xp.ndarray.__matmul__  # what it inherits is theirs


class Graph:
    """A function of no arguments, whose arrays stay where they are, recorded once as a CUDA graph and replayed by a call.

    It runs once before it is recorded, so that all kernels are compiled and all constants are on the device. Its memory comes
    from a pool of its own, which nothing else takes from between two replays; graphs that never run at the same time may share
    one. `result` is what the function returned, in place: a replay of this graph, or of another with the same pool, overwrites
    it. Raises RuntimeError, which speaks of the capture, if the function does what cannot be recorded: copies from or to the
    host, waiting.
    """

    def __init__(self, f: Callable[[], Any], pool: Any = None) -> None:
        self.pool, self.stream = pool or xp.cuda.MemoryPool(), xp.cuda.Stream()
        xp.cuda.get_current_stream().synchronize()
        with self.stream, xp.cuda.using_allocator(self.pool.malloc), _own_products():
            f()
            self.stream.synchronize()
            self.stream.begin_capture()
            try:
                self.result = f()
            except BaseException:
                with contextlib.suppress(Exception):
                    self.stream.end_capture()  # the graph of a failed recording is no use
                raise
            self.graph = self.stream.end_capture()

    def __call__(self) -> None:
        self.graph.launch(self.stream)
