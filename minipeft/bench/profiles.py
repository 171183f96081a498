"""Where our step goes: the time and the bytes of every op."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from minipeft.bench.ours import our_step


def profile(
    size: str,
    method: str,
    steps: int = 5,
    dtype: str = "float32",
    so_far: Callable[[list[dict]], None] = lambda rows: None,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> list[dict]:
    """Calls, milliseconds and bytes of results of every op of a step, forward and backward apart, most time first.

    `so_far` is called after each step with the same of the steps until then.
    """
    from minipeft.engine import operators, ops, tensor
    from minipeft.train import AdamW

    spent: dict[tuple[str, str], list[float]] = {}

    def size_of(x: Any) -> int:
        if isinstance(x, tuple | list):
            return sum(map(size_of, x))
        return int(getattr(getattr(x, "value", x), "nbytes", 0))

    def timed(op: str, way: str, f: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = f(*args, **kwargs)
            entry = spent.setdefault((op, way), [0, 0.0, 0])
            for i, more in enumerate((1, time.perf_counter() - start, size_of(found))):
                entry[i] += more
            return found

        return call

    def watched(op: str, f: Callable) -> Callable:
        f = timed(op, "forward", f)

        def call(*args: Any, **kwargs: Any) -> Any:
            found = f(*args, **kwargs)
            if type(found) is tensor.Tensor and found.node.parents:
                vjps = found.node.vjps
                found.node.vjps = (
                    timed(op, "backward", vjps) if callable(vjps) else tuple(timed(op, "backward", v) for v in vjps)
                )
            return found

        return call

    step = our_step(size, method, graph=False, dtype=dtype, given=given)
    step()
    known = {name: f for name, f in tensor.OPS.items() if getattr(ops, name, None) is f}
    kept = tensor._accumulate, AdamW.step
    try:
        for name, f in known.items():
            setattr(ops, name, watched(name, f))
        operators.give()
        tensor._accumulate, AdamW.step = timed("sums", "backward", kept[0]), timed("AdamW", "update", kept[1])  # type: ignore[method-assign]
        whole = 0.0
        for done in range(1, steps + 1):
            start = time.perf_counter()
            step()
            whole += time.perf_counter() - start
            rows = _shares(spent, whole, done)
            so_far(rows)
    finally:
        for name, f in known.items():
            setattr(ops, name, f)
        operators.give()
        tensor._accumulate, AdamW.step = kept  # type: ignore[method-assign]
    return rows


def _shares(spent: dict[tuple[str, str], list[float]], whole: float, steps: int) -> list[dict]:
    rows: list[dict[str, Any]] = [
        dict(op=op, way=way, calls=n / steps, ms=1000 * t / steps, bytes=b / steps, share=t / whole)
        for (op, way), (n, t, b) in sorted(spent.items(), key=lambda x: -x[1][1])
    ]
    rest = whole / steps - sum(r["ms"] for r in rows) / 1000
    return [*rows, dict(op="the rest", way="", calls=0.0, ms=1000 * rest, bytes=0.0, share=rest * steps / whole)]
