"""Two versions of this package in turns: `python -m minipeft.bench.versions OLD NEW BACKEND ROUNDS SIZE:METHOD:TASK:STEPS …`.

OLD and NEW are folders that hold a `minipeft`. Each runs in a process of its own; a round is some steps of each, the first
of them changing. Printed are medians, their ratio, the middle half of the rounds' ratios, and the ratio of peak memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

SIDE = """
import json, resource, sys, time
from minipeft.engine import use
use(sys.argv[1])
from minipeft.bench import our_step
step = our_step(*sys.argv[2:5])
for _ in range(3):
    step()
print("ready", flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    for _ in range(int(line)):
        step()
    seconds = (time.perf_counter() - began) / int(line)
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]), flush=True)
"""


def measured(folders: list[str], backend: str, rounds: int, what: str) -> str:
    """The line of one kind of step."""
    size, method, task, steps = what.split(":")
    with tempfile.TemporaryDirectory() as nowhere:  # so that no checkout is imported by chance
        sides: list[Any] = [
            subprocess.Popen(
                [sys.executable, "-c", SIDE, backend, size, method, task],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=nowhere,
                env=dict(os.environ, PYTHONPATH=os.path.abspath(folder)),
            )
            for folder in folders
        ]  # fmt: skip
        if [side.stdout.readline().strip() for side in sides] != ["ready", "ready"]:
            raise SystemExit(f"versions: {what}: one of the two does not start")
        seconds: list[list[float]] = [[], []]
        memory = [0.0, 0.0]
        for n in range(rounds):
            for i in (0, 1) if n % 2 else (1, 0):
                sides[i].stdin.write(f"{steps}\n")
                sides[i].stdin.flush()
                taken, memory[i] = json.loads(sides[i].stdout.readline())
                seconds[i].append(1e3 * taken)
        for side in sides:
            side.stdin.close()
            side.wait()
    old, new = map(statistics.median, seconds)
    ratios = sorted(b / a for a, b in zip(*seconds, strict=True))
    middle = f"{ratios[len(ratios) // 4]:.2f} to {ratios[3 * len(ratios) // 4]:.2f}"
    return f"| {size} | {method} | {task} | {old:.2f} | {new:.2f} | {new / old:.2f} | {middle} | {memory[1] / memory[0]:.2f} |"


def main(argv: list[str]) -> None:
    """Print a table in Markdown."""
    if len(argv) < 5:
        raise SystemExit(__doc__)
    print("| size | method | task | old, ms | new, ms | new/old | middle half of rounds | memory new/old |")
    print("|---|---|---|---|---|---|---|---|")
    for what in argv[4:]:
        print(measured(argv[:2], argv[2], int(argv[3]), what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
