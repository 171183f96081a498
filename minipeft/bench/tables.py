"""Measurements for people: a row as a line, and tables, one of which is told as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minipeft.bench.plans import Plan, called


def said(row: dict) -> str:
    """A row as one line."""
    sides = [
        f"{called(s)} {row[f'{s}_ms']:.1f} ms, {row[f'{s}_peak'] / 1e6:.0f} MB" for s in _sides(row) if f"{s}_ms" in row
    ]
    sides += [f"time × {row['time_ratio']:.2f}, memory × {row['memory_ratio']:.2f}"] if "time_ratio" in row else []
    return "; ".join(sides + [f"{called(s)} failed" for s in row.get("failed", {})])


def _sides(row: dict) -> list[str]:
    return [
        s for s in ("ours", row.get("against"), "compiled") if s and (f"{s}_ms" in row or s in row.get("failed", {}))
    ]


def failures(rows: Sequence[dict]) -> list[str]:
    """Why sides failed, a line each."""
    return list(dict.fromkeys(why for r in rows for why in r.get("failed", {}).values()))


TOLD = "time, memory: ours over that side's; rate: of matrix products, or tokens/s"
RIGHT = {"ms": 8, "MB": 6, "time": 5, "memory": 6, "rate": 8}  # columns of numbers


def heading(plan: Plan) -> str:
    """The columns of a table whose rows come one after another."""
    return _line(plan, ["step", "size", "side", "threads", *RIGHT])


def lines(row: dict, plan: Plan) -> list[str]:
    """A row of that table, a line for every side; the ratios are ours over that side's."""
    about, found = [row["method"] if row["task"] == "step" else row["task"], row["size"]], []
    for side in _sides(row):
        cells = ["failed"]
        if f"{side}_ms" in row:
            to = "" if side == row.get("against") else "compiled_"
            ratios = (None, None) if side == "ours" else (row.get(f"{to}time_ratio"), row.get(f"{to}memory_ratio"))
            cells = [f"{row[f'{side}_ms']:.1f}", f"{row[f'{side}_peak'] / 1e6:.0f}"]
            cells += ["" if x is None else f"{x:.2f}" for x in ratios]
            share = f"{100 * row['share']:.0f} %" if side == "ours" and "share" in row else ""
            cells += [f"{row[f'{side}_tokens_s']:.0f} /s" if f"{side}_tokens_s" in row else share]
        found.append(_line(plan, [*about, {"peft": "PEFT"}.get(side, side), _threads(row, side), *cells]))
        about = ["", ""]
    return found


def _threads(row: dict, side: str) -> str:
    """Those of a side: "4 × 2", two in each of four workers."""
    n, threads = row.get("workers", 1) if side == "ours" else 1, row.get("threads", 1)
    return f"{n} × {max(1, threads // n)}" if n > 1 else f"{threads}"


def _line(plan: Plan, cells: Sequence[str]) -> str:
    names = [m if t == "step" else t for t, m, _ in plan.rows], [s for *_, s in plan.rows], plan.sides
    left = [max(map(len, ["step", *some])) for some in names]
    said = [*(f"{cell:{n}}" for cell, n in zip(cells, left))]
    if len(plan.threads) > 1 or plan.workers != 1:
        said.append(f"{cells[3]:>7}")
    return " ".join([*said, *(f"{cell:>{n}}" for cell, n in zip(cells[4:], RIGHT.values()))]).rstrip()


def profile_table(rows: Sequence[dict]) -> Any:
    """A rich table of a profile."""
    from rich.table import Table

    out = Table("op", "way", "calls", "ms", "share", "MB made", header_style="bold")
    for r in rows:
        out.add_row(
            r["op"],
            r["way"],
            f"{r['calls']:.0f}",
            f"{r['ms']:.2f}",
            f"{100 * r['share']:.1f} %",
            f"{r['bytes'] / 1e6:.1f}",
        )
    return out
