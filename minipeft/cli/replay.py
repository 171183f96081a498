"""`minipeft replay`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from minipeft.cli.adapters import base_folder
from minipeft.cli.options import Backend, Base, Json, Strict
from minipeft.cli.outputs import Outputs
from minipeft.cli.terminal import Kept, cell, progress, table


def replay(
    cases: Annotated[list[Path], typer.Argument(help="Case folders.")],
    base: Base = None,
    strict: Strict = False,
    json_: Json = None,
    backend: Backend = None,
) -> None:
    """Compute recorded cases again, and exit with 0 only if all agree. A case is a folder with adapter/ and
    expected.safetensors.

    Example:
        minipeft replay cases/* --base base/
    """
    import numpy as np

    from minipeft.checkpoints import load
    from minipeft.conformance.replay import replay as one

    outputs = Outputs(json=json_)
    reports: Kept[Any] = Kept()
    with reports, progress("replaying", len(cases)) as tick:
        tick.doing("the base")
        model = load(base_folder(base), np.float64)
        for case in cases:
            tick.doing(case.name)
            reports.append(report := one(model, case))
            tick(case.name, _verdict(report, strict)[0] + (f", {report.problem}" if report.problem else ""))
    agree = sum(r.agrees(strict) for r in reports)
    outputs.show(_table(reports, strict), *_told(reports, strict), f"{agree} of {len(reports)} cases agree")
    outputs.json([r.to_json(strict) for r in reports])
    reports.finish()
    if agree < len(reports):
        raise typer.Exit(1)


def _verdict(report: Any, strict: bool) -> tuple[str, str]:
    """In words, and how they are coloured."""
    if report.problem:
        return "ERROR", "red"
    if not report.agrees(strict):
        return "DIFFERS", "red"
    rounded = any(t.outcome == "float32" for t in report.tensors)
    return ("agrees (float32)" if rounded else "agrees"), "green"


def _table(reports: Sequence[Any], strict: bool) -> Any:
    numbers = ("logits", "loss", "gradients")
    caption = "err/(u·cond) in float64; rel: relative error, where no cond can be had"
    shown = table("case", "method", "verdict", *numbers, right=numbers, caption=caption)

    def largest(tensors: list[Any]) -> str:
        if not tensors:
            return "–"
        ratios = [t.ratio for t in tensors if t.ratio is not None]
        return f"{max(ratios):.2g}" if ratios else f"{max(t.relative for t in tensors):.1e} rel"

    for r in reports:
        word, style = _verdict(r, strict)
        found = (largest(r.of(kind)) for kind in ("logits", "loss", "grad"))
        shown.add_row(cell(r.case), cell(r.method), f"[{style}]{word}[/{style}]", *found)
    return shown


def _told(reports: Sequence[Any], strict: bool) -> list[str]:
    """A line for each that does not agree: what is wrong, or the tensor that is furthest off."""
    return [
        f"{r.case}: {r.problem or f'furthest off: {r.worst.name}'}"
        for r in reports
        if not r.agrees(strict) and (r.problem or r.worst)
    ]
