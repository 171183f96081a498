"""`minipeft replay`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from minipeft.cli.common import Backend, terminal


def replay(
    cases: Annotated[list[Path], typer.Argument(help="Case folders.")],
    base: Annotated[Path, typer.Option(help="The base checkpoint folder.")],
    json_: Annotated[bool, typer.Option("--json", help="For machines, on standard output.")] = False,
    strict: Annotated[bool, typer.Option(help="Agreement to float32's rounding is not enough.")] = False,
    backend: Backend = None,
) -> None:
    """Compute recorded cases again, and exit with 0 only if all agree.

    A case is a folder with adapter/ and expected.safetensors. Example: [bold]minipeft replay --base base/ cases/*[/bold]
    """
    from rich.progress import Progress

    from minipeft.conformance.replay import replay_all

    with Progress(console=terminal(stderr=True), transient=True) as bar:
        line = bar.add_task("replaying", total=len(cases))
        reports = replay_all(base, cases, lambda i, n, name: bar.update(line, completed=i, description=name))
    if json_:
        print(json.dumps([r.to_json() for r in reports], indent=2))
    else:
        terminal().print(_replayed(reports, strict))
        agree = sum(r.agrees(strict) for r in reports)
        print(f"{agree} of {len(reports)} cases agree")
    if not all(r.agrees(strict) for r in reports):
        raise typer.Exit(1)


def _replayed(reports: Sequence[Any], strict: bool) -> Any:
    from rich.table import Table

    table = Table("case", "method", "", "logits", "loss", "gradients", "worst tensor", header_style="bold", pad_edge=False,
                  caption="err/(u·cond) in float64; rel: relative error, where no cond can be had")  # fmt: skip

    def shown(tensors: list[Any]) -> str:
        if not tensors:
            return "–"
        known = [t.ratio for t in tensors if t.ratio is not None]
        return f"{max(known):.2g}" if known else f"{max(t.relative for t in tensors):.1e} rel"

    for r in reports:
        verdict = (
            "[green]agrees[/green]"
            if r.agrees(strict)
            else "[red]DIFFERS[/red]"
            if not r.problem
            else "[red]ERROR[/red]"
        )
        if r.agrees(strict) and any(t.outcome == "float32" for t in r.tensors):
            verdict = "[green]agrees[/green] (float32)"
        worst = r.problem or (r.worst.name if r.worst else "–")
        table.add_row(r.case, r.method, verdict, shown(r.of("logits")), shown(r.of("loss")), shown(r.of("grad")), worst)
    return table
