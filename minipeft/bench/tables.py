"""Measurements for people: a row as a line, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minipeft.bench.plans import called


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


def table(rows: Sequence[dict]) -> Any:
    """A rich table of the measurements, a line for every side; the ratios are ours over that side's."""
    from rich import box
    from rich.table import Table

    told = "time, memory: ours over that side's; rate: of matrix products here, or tokens a second"
    out = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=told,
        caption_justify="left",
    )
    for name in ("step", "size", "side"):
        out.add_column(name, overflow="fold")
    for name in ("ms", "MB", "time", "memory", "rate"):
        out.add_column(name, justify="right", no_wrap=True)
    for r in rows:
        about = [r["method"] if r["task"] == "step" else r["task"], r["size"]]
        for side in _sides(r):
            if f"{side}_ms" in r:
                to = "" if side == r.get("against") else "compiled_"
                ratios = (r.get(f"{to}time_ratio"), r.get(f"{to}memory_ratio")) if side != "ours" else (None, None)
                cells = [f"{r[f'{side}_ms']:.1f}", f"{r[f'{side}_peak'] / 1e6:.0f}"]
                cells += ["" if x is None else f"{x:.2f}" for x in ratios]
                share = f"{100 * r['share']:.0f} %" if side == "ours" and "share" in r else ""
                cells += [f"{r[f'{side}_tokens_s']:.0f} /s" if f"{side}_tokens_s" in r else share]
            else:
                cells = ["failed"]
            out.add_row(*about, {"peft": "PEFT"}.get(side, side), *cells)
            about = ["", ""]
    return out


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
