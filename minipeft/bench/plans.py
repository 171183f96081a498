"""What is measured, checked before it is, and roughly how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from minipeft.bench.cases import METHODS, NEW, PROMPT, STEPS, TASKS, fits, flops, settings
from minipeft.bench.machine import matrix_rate, on_gpu
from minipeft.errors import Bad, near


@dataclass(frozen=True)
class Plan:
    """What is measured: rows of (task, method, size), each in `rounds` turns of every side, on every number of threads.

    Of ours they may be shared out among `workers`, or as many as pay ("auto").
    """

    rows: tuple[tuple[str, str, str], ...]
    against: str | None = None
    rounds: int = 7
    threads: tuple[int, ...] = (2,)
    compiled: bool = False
    dtype: str = "float32"
    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings of our methods
    workers: int | str = 1

    @property
    def sides(self) -> tuple[str, ...]:
        return ("ours", *([self.against] if self.against else []), *(["compiled"] if self.compiled else []))

    def seconds(self) -> float:
        """Roughly how long it takes: what the steps multiply, at a third of the rate of matrix products here, and the starts."""
        rate = 1e13 if on_gpu() else matrix_rate(seconds=0.1) * 1e9
        sums = sum(self._steps(t, s) * flops(s, t) for t, _, s in self.rows)
        starts = len(self.rows) * (3 + sum(60 if side == "compiled" else 12 for side in self.sides[1:]))
        return len(self.threads) * (starts + len(self.sides) * sums / (rate / 3))

    def _steps(self, task: str, size: str) -> float:
        if task != "generate":
            return 3 + self.rounds * STEPS[size.partition(",")[0]]
        tokens = settings(size)["b"] * settings(size)["t"]  # of a step; a generation passes one row's, one by one
        return (3 + self.rounds) * 10 * (PROMPT + NEW) / tokens

    def __str__(self) -> str:
        seconds = self.seconds()
        long = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
        n = len(self.rows) * len(self.threads)
        turns = f"{self.rounds} turn{'' if self.rounds == 1 else 's'} of {' and '.join(map(called, self.sides))}"
        return f"{n} measurement{'' if n == 1 else 's'}, {turns} each: roughly {long}"


def plan(
    against: str | None, sizes: Sequence[str], methods: Sequence[str], rounds: int = 7, threads: int | Sequence[int] = 2,
    tasks: Sequence[str] = ("step",), compiled: bool = False, dtype: str = "float32",
    given: Mapping[str, Mapping[str, Any]] = MappingProxyType({}), workers: int | str = 1,
) -> Plan:  # fmt: skip
    """Every size and method; with `against` "peft" in turns with torch, and `compiled` with torch.compile as well.

    `dtype`: "float32", or "bfloat16" for the base. `given`: {method: settings} instead of those here, of our side alone. `workers`:
    processes that share our steps, each with its share of the threads; "auto": as many as pay.
    Raises `Bad` for unknown words, for settings where there is another side or no method, and where the other side is not
    installed.
    """
    if against not in (None, "peft"):
        raise Bad(f"--against {against}: expected peft{near(against, ['peft'])}")
    for words, known in ((methods, METHODS), (tasks, TASKS)):
        for w in words:
            if w not in known:
                raise Bad(f"{w!r}: expected one of {', '.join(known)}{near(w, known)}")
    for size in sizes:
        settings(size)
    for package in ("torch", "transformers", "peft") if against or compiled else ():
        if find_spec(package) is None:
            raise Bad(f"the other side needs {package}: pip install {package}")
    rows = [(t, m, s) for t in tasks for m in (methods if t == "step" else ["base"]) for s in sizes]
    rows = [(t, m, s) for t, m, s in rows if t != "step" or fits(m, s)]
    if any(given.values()) and (against or compiled or set(tasks) != {"step"}):
        raise Bad("settings are of our method in a step alone; a size says a rank for both sides: M,r=4")
    if workers != 1 and (set(tasks) != {"step"} or on_gpu()):
        raise Bad(f"--workers {workers}: a step on the host is all that workers share")
    each = (threads,) if isinstance(threads, int) else tuple(threads)
    return Plan(tuple(rows), against, rounds, each, compiled, dtype, given, workers)


def called(side: str) -> str:
    """A side as people call it."""
    return {"ours": "ours", "peft": "torch + PEFT", "compiled": "torch.compile"}.get(side, side)
