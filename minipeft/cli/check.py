"""`minipeft check`."""

from __future__ import annotations

import json
from typing import Annotated, Optional

import typer

from minipeft.cli.common import Backend, terminal
from minipeft.errors import Bad


def check(
    names: Annotated[Optional[list[str]], typer.Argument(help="Methods (default: all).")] = None,  # noqa: UP045
    family: Annotated[Optional[list[str]], typer.Option(help="llama, gpt2, bert, t5, vit (default: all).")] = None,  # noqa: UP045
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    json_: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    backend: Backend = None,
) -> None:
    """Every law on a method, on tiny models of all families; exits with 1 if one is broken.

    Example: [bold]minipeft check dora[/bold]
    """
    import dataclasses

    import numpy as np
    from rich.progress import Progress

    from minipeft.conformance import laws
    from minipeft.method import METHODS, load_methods, method_class

    load_methods()
    if dtype not in ("float64", "float32"):
        raise Bad(f"--dtype {dtype}: expected float64 or float32")
    chosen = [method_class(n) for n in names] if names else [METHODS[n] for n in sorted(METHODS)]
    verdicts = {}
    with Progress(console=terminal(stderr=True), transient=True) as bar:
        line = bar.add_task("checking", total=len(chosen))
        for cls in chosen:
            bar.update(line, description=cls.name)
            verdicts[cls.name] = list(laws.check(cls, family or None, np.dtype(dtype).type))
            bar.advance(line)
    if json_:
        print(json.dumps({n: [dataclasses.asdict(v) for v in vs] for n, vs in verdicts.items()}, indent=2))
    else:
        from rich.table import Table

        table = Table("method", *laws.LAWS, header_style="bold", pad_edge=False)
        for n, vs in verdicts.items():
            row = []
            for law in laws.LAWS:
                some = [v for v in vs if v.law == law]
                bad = [v.family for v in some if v.outcome == "fail"]
                fits = sum(v.outcome == "pass" for v in some)
                row.append(f"[red]{', '.join(bad)}[/red]" if bad else f"[green]{fits} pass[/green]" if fits else "–")
            table.add_row(n, *row)
        terminal().print(table)
        for n, vs in verdicts.items():
            for v in vs:
                if v.outcome == "fail":
                    print(f"{n}, {v.family}, {v.law}: {v.reason}")
    if any(v.outcome == "fail" for vs in verdicts.values() for v in vs):
        raise typer.Exit(1)
