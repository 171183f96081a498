"""Measuring: the sides take turns, some steps of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minipeft.bench.cases import NEW, STEPS, flops
from minipeft.bench.plans import Plan
from minipeft.errors import Bad


def bench(
    plan: Plan, keep: Callable[[dict], None] = lambda row: None, doing: Callable[[str], None] = lambda what: None
) -> list[dict]:
    """Measure. `keep` is called with each row as it is there, `doing` with what is measured next.

    A side that fails costs its own numbers: `row["failed"]` says why.
    """
    out = []
    for threads in plan.threads:
        for task, method, size in plan.rows:
            doing(f"{task} {method} {size}")
            out.append(_measure(task, method, size, threads, plan))
            keep(out[-1])
    return out


def _measure(task: str, method: str, size: str, threads: int, plan: Plan) -> dict[str, Any]:
    from minipeft.bench.sides import Worker

    row: dict[str, Any] = dict(
        task=task, method=method, size=size, threads=threads, dtype=plan.dtype, against=plan.against
    )
    if given := dict(plan.given.get(method, {})):
        row["set"] = given
    workers: dict[str, Worker] = {}

    def tried(side: str, f: Callable[[], None]) -> None:
        try:
            f()
        except Bad as why:
            row.setdefault("failed", {})[side] = str(why)

    def begin(side: str) -> None:
        workers[side] = Worker(side, size, method, threads, task, plan.dtype, given, plan.workers)

    try:
        for side in plan.sides:
            tried(side, lambda side=side: begin(side))  # type: ignore[misc]
        steps = STEPS[size.partition(",")[0]] if task != "generate" else 1
        for _ in range(plan.rounds):
            for side, w in workers.items():
                if side not in row.get("failed", {}):
                    tried(side, lambda w=w: w.run(steps))  # type: ignore[misc]
        for side, w in workers.items():
            if side not in row.get("failed", {}):
                row |= _numbers(side, task, w)
        if plan.workers != 1 and "ours_ms" in row:
            row["workers"] = workers["ours"].about["workers"]
        if task != "generate" and "ours_ms" in row:
            rate = workers["ours"].about["gflops"]
            row |= {"gflops": rate, "share": flops(size, task) / (row["ours_ms"] / 1000) / (rate * 1e9)}
    finally:
        for w in workers.values():
            w.stop()
    for side in plan.sides[1:]:
        to = "" if side == plan.against else "compiled_"
        if "ours_ms" in row and f"{side}_ms" in row:
            row[f"{to}time_ratio"] = row["ours_ms"] / row[f"{side}_ms"]
            row[f"{to}memory_ratio"] = row["ours_peak"] / max(row[f"{side}_peak"], 1)
    return row


def _numbers(side: str, task: str, w: Any) -> dict[str, float]:
    import numpy as np

    seconds = float(np.median(w.times))
    found = {f"{side}_ms": 1000 * seconds, f"{side}_peak": w.about["peak"]}
    return found | ({f"{side}_tokens_s": NEW / seconds} if task == "generate" else {})
