"""Ways to spend cores on a step, in turns: `python -m minipeft.bench.cores ROUNDS WAY,WAY,… SIZE:METHOD:STEPS …`.

A way is workers × threads of each, `4x2`, or `peft:8`, torch with so many threads. Every way is a process of its own. `1x8@blocks.EACH_FLOPS=0`
sets a constant of `minipeft.engine.fast` in it: 0, and all threads share an op whether they pay or not. Printed are the medians of the steps in milliseconds, the fastest, and what other ways take of the first's time.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor

from minipeft.bench.sides import Worker, worker


def begun(way: str, size: str, method: str) -> Worker:
    """A process that makes steps in this way."""
    if way.startswith("peft:"):
        return Worker("peft", size, method, int(way.removeprefix("peft:")))
    counts, *constants = way.split("@")
    workers, each = map(int, counts.split("x"))
    return Worker("ours", size, method, workers * each, workers=workers, module="minipeft.bench.cores", more=constants)


def measured(rounds: int, ways: list[str], what: str) -> list[str]:
    """The lines of one kind of step."""
    size, method, steps = what.split(":")
    with ThreadPoolExecutor(len(ways)) as pool:
        sides = list(pool.map(lambda way: begun(way, size, method), ways))
    try:
        for n in range(rounds):
            for side in sides if n % 2 else reversed(sides):
                side.run(int(steps))
    finally:
        for side in sides:
            side.stop()
    medians = [1000 * statistics.median(side.times) for side in sides]
    return [
        f"| {size} | {method} | {way} | {ms:.1f} | {1000 * min(side.times):.1f} | {ms / medians[0]:.2f} |"
        for way, side, ms in zip(ways, sides, medians)
    ]


def main(argv: list[str]) -> None:
    """Print a table in Markdown."""
    if len(argv) < 3:
        raise SystemExit(__doc__)
    print("| size | method | workers × threads | ms | fastest, ms | of the first's |\n|---|---|---|---|---|---|")
    for what in argv[2:]:
        print("\n".join(measured(int(argv[0]), argv[1].split(","), what)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:  # a way's own process
        given, constants = sys.argv[1:8], sys.argv[8:]
        for name, _, number in (c.partition("=") for c in constants):
            module, _, name = name.partition(".")
            setattr(importlib.import_module(f"minipeft.engine.fast.{module}"), name, float(number))
        worker(*given)
    else:
        main(sys.argv[1:])
