"""A step over ranks beside one process: `python -m minipeft.bench.ranks WORKERS ROUNDS SIZE:METHOD:STEPS …`.

Workers take turns with one process on as many threads, the first of them changing. Printed are the medians of their steps in milliseconds, one process's
first, and how many times faster than it workers are, with the middle half of the rounds; and the same of one process that computes its layers
twice. By the clock, and by the time that the first thread was at work, of which nothing else that the machine does is a part,
nor what it waits for.

    mpiexec -n 2 python -m minipeft.bench.ranks mpi ROUNDS SIZE:METHOD:STEPS …

has the ranks of mpiexec in place of workers, and beside them rank 0 alone. With MINIPEFT_BACKEND=cupy a rank is a GPU, and steps are graphs.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any


def measured(rounds: int, what: str, ways: dict[str, dict[str, Any]], alone: Callable) -> str:
    """The lines of one kind of step in these ways, the first of one process."""
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
    sent = 0

    def turn(how: dict[str, Any]) -> tuple[float, float]:
        """Milliseconds of a step, and of the first thread's in it; the first two steps are left out."""
        nonlocal sent
        gc.collect()  # the graphs of the turn before, and their memory
        stamps: list[tuple[float, float]] = []
        done = fit(
            adapted, data, steps=2 + int(steps), optimiser=AdamW(lr=1e-4), **how,
            progress=lambda *_: stamps.append((time.perf_counter(), time.thread_time())),
        )  # fmt: skip
        sent = max(sent, done.sent)
        wall, own = (1000 * (b - a) / int(steps) for a, b in zip(stamps[1], stamps[-1])) if stamps else (0.0, 0.0)
        return wall, own

    first = next(iter(ways))
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for n in range(rounds):
        for way in sorted(ways, reverse=n % 2 == 1):
            if "workers" in ways[way]:
                found[way].append(turn(ways[way]))
            else:
                alone(lambda way=way: found[way].append(turn(ways[way])))  # type: ignore[misc]

    def against(way: str) -> str:
        said = [way]
        for i, clock in enumerate(("ms", "ms of the first thread")):
            one, other = [x[i] for x in found[first]], [x[i] for x in found[way]]
            ratios = sorted(a / b for a, b in zip(one, other))
            middle = f"{ratios[len(ratios) // 4]:.2f} … {ratios[-1 - len(ratios) // 4]:.2f}"
            said.append(
                f"  {statistics.median(one):7.1f} {statistics.median(other):7.1f} {clock}, × {statistics.median(ratios):.2f} ({middle})"
            )
        return "\n".join(said)

    if not found[first]:  # a rank that only takes part
        return ""
    return "\n".join([f"{what}, beside {first}; {sent:,} bytes a step", *map(against, list(ways)[1:])])


def main(count: str, rounds: int, what: list[str]) -> None:
    """Print what is measured."""
    if count != "mpi":
        ways: dict[str, dict[str, Any]] = {
            "one process": {}, "workers": dict(workers=int(count)), "computed twice": dict(recompute=True)
        }  # fmt: skip
        for each in what:
            print(measured(rounds, each, ways, lambda f: f()), flush=True)
        return
    from minipeft.engine import backend
    from minipeft.train.exchange import exchanging

    graph = {"graph": True} if backend.name() == "cupy" else {}
    with exchanging("mpi") as world:

        def alone(f: Callable) -> None:
            """Rank 0 alone, while the others sleep."""
            if world.rank == 0:
                f()
            met = world.comm.Ibarrier()  # type: ignore[attr-defined]
            while not met.Test():
                time.sleep(0.001)

        for each in what:
            ways = {"rank 0 alone": graph, f"{world.size} ranks": dict(workers=world, **graph)}
            said = measured(rounds, each, ways, alone)
            if world.rank == 0:
                print(said, flush=True)
        if world.rank == 0 and graph:
            print(f"by {type(world.wire).__name__}", flush=True)  # type: ignore[attr-defined]


if __name__ == "__main__":
    if sys.argv[1] != "mpi":  # NumPy is not read yet
        os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), sys.argv[1])
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
