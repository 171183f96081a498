"""A step over workers beside one process on as many threads: `python -m minipeft.bench.ranks WORKERS ROUNDS SIZE:METHOD:STEPS …`.

They take turns, the first of them changing. Printed are the medians of their steps in milliseconds, one process's first, and how many
times faster than it workers are, with the middle half of the rounds; and the same of one process that computes its layers twice. By the
clock, and by the time that the first thread was at work, of which nothing else that the machine does is a part, nor what it waits for.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import Any


def measured(workers: int, rounds: int, what: str) -> str:
    """The lines of one kind of step."""
    import numpy as np

    from minipeft.attaching import attach
    from minipeft.bench.cases import SETTINGS, filled, settings
    from minipeft.bench.ours import our_model
    from minipeft.method import method_class
    from minipeft.model.batch import batch
    from minipeft.train import AdamW, fit

    size, method, steps = what.split(":")
    s = settings(size)
    adapted = attach(our_model(size), method_class(method)(**filled(SETTINGS[method]["ours"], size)))
    ids = np.random.default_rng(1).integers(0, s["vocab"], (s["b"], s["t"]))
    data = [batch(input_ids=ids, labels=ids)]

    def turn(how: dict[str, Any]) -> tuple[float, float]:
        """Milliseconds of a step, and of the first thread's in it; the first step is left out."""
        stamps: list[tuple[float, float]] = []
        fit(
            adapted, data, steps=1 + int(steps), optimiser=AdamW(lr=1e-4), **how,
            progress=lambda *_: stamps.append((time.perf_counter(), time.thread_time())),
        )  # fmt: skip
        wall, own = (1000 * (b - a) / int(steps) for a, b in zip(stamps[0], stamps[-1]))
        return wall, own

    ways: dict[str, dict[str, Any]] = dict(one={}, workers=dict(workers=workers), recompute=dict(recompute=True))
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for n in range(rounds):
        for way in sorted(ways, reverse=n % 2 == 1):
            found[way].append(turn(ways[way]))

    def against(way: str) -> str:
        said = ["workers" if way == "workers" else "computed twice"]
        for i, clock in enumerate(("ms", "ms of the first thread")):
            one, other = [x[i] for x in found["one"]], [x[i] for x in found[way]]
            ratios = sorted(a / b for a, b in zip(one, other))
            middle = f"{ratios[len(ratios) // 4]:.2f} … {ratios[-1 - len(ratios) // 4]:.2f}"
            said.append(
                f"  {statistics.median(one):7.1f} {statistics.median(other):7.1f} {clock}, × {statistics.median(ratios):.2f} ({middle})"
            )
        return "\n".join(said)

    return "\n".join([f"{what}, beside one process", against("workers"), against("recompute")])


if __name__ == "__main__":
    count, turns = map(int, sys.argv[1:3])
    os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), str(count))  # NumPy is not read yet
    for each in sys.argv[3:]:
        print(measured(count, turns, each), flush=True)
