"""A step against sequence length and rank, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from minipeft.bench.cases import METHODS
from minipeft.bench.plans import Plan, plan
from minipeft.errors import Bad

LENGTHS, RANKS = (64, 128, 256, 512, 1024, 2048), (1, 4, 16, 64)
KINDS = {"length": [f"M,t={t},b=1" for t in LENGTHS], "rank": [f"M,r={r}" for r in RANKS]}


def sweep(against: str | None, rounds: int, threads: int | Sequence[int], dtype: str = "float32") -> Plan:
    """A step of size M against sequence length (one row) and rank. Raises `Bad` without matplotlib, which draws it."""
    if find_spec("matplotlib") is None:
        raise Bad("the plots need matplotlib: pip install matplotlib")
    return plan(
        against, [size for sizes in KINDS.values() for size in sizes], METHODS[:1], rounds, threads, dtype=dtype
    )


def write_sweep(folder: Path, rows: list[dict], against: str | None) -> None:
    """speed.json and speed_*.png, of the rows there are."""
    from minipeft.checkpoints.files import write_json

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "speed.json", rows)
    by_size = {r["size"]: r for r in rows if not r.get("failed")}
    for (kind, sizes), at in zip(KINDS.items(), (LENGTHS, RANKS), strict=True):
        there = [(x, by_size[size]) for x, size in zip(at, sizes, strict=True) if size in by_size]
        if there:
            _plot(folder / f"speed_{kind}.png", kind, [x for x, _ in there], [r for _, r in there], against)


def _plot(path: Path, kind: str, at: Sequence[int], rows: list[dict], against: str | None) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, kind_of, unit, label in zip(axes, ("ms", "peak"), (1, 1e6), ("ms a step", "peak MB"), strict=True):
        for side, name in [("ours", "minipeft")] + ([(against, "torch + PEFT")] if against else []):
            axis.plot(at, [r[f"{side}_{kind_of}"] / unit for r in rows], marker="o", label=name)
        axis.set(xlabel={"length": "tokens in the row", "rank": "rank"}[kind], ylabel=label, xscale="log", yscale="log")
        axis.set_xticks(at, [str(x) for x in at], minor=False)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)
