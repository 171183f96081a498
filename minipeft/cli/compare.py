"""`minipeft compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft.cli.common import Backend, Dtype, terminal
from minipeft.errors import Bad


def compare(
    methods: Annotated[Optional[list[str]], typer.Argument(help="Methods to compare (default: all).")] = None,  # noqa: UP045
    base: Annotated[
        Path | None, typer.Option(help="A checkpoint folder (default: the decoder of the package).")
    ] = None,
    data: Annotated[Optional[Path], typer.Option(help="A CSV file with columns text, label and perhaps split.")] = None,  # noqa: UP045
    steps: Annotated[int, typer.Option(min=1, help="Training steps for each method.")] = 40,
    lr: Annotated[
        float | None, typer.Option(help="One learning rate for all (default: each method's usual one).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same numbers.")] = 0,
    jobs: Annotated[Optional[int], typer.Option(min=1, help="Processes (default: one for each core).")] = None,  # noqa: UP045
    html: Annotated[Optional[Path], typer.Option(help="Write one self-contained page.")] = None,  # noqa: UP045
    png: Annotated[Optional[Path], typer.Option(help="Write the plots.")] = None,  # noqa: UP045
    json_: Annotated[Path | None, typer.Option("--json", help="Write all numbers ('-': to standard output).")] = None,
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Adapt one base to one task with every method, and measure what each costs and gives.

    Examples: [bold]minipeft compare[/bold]   [dim]minipeft compare lora dora --steps 100 --html out.html[/dim]
    [dim]minipeft compare lora --base path/to/checkpoint --data reviews.csv[/dim]
    """
    import dataclasses
    import time

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from minipeft import compare as job
    from minipeft.method import method_class

    begun = time.perf_counter()
    for name in methods or ():
        method_class(name)
    console = terminal(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # here first: a mistake is found before any process starts
    task = job.prepare(base, data, steps=steps, seed=seed, dtype=dtype)
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task("comparing", total=None)

        def progress(done: int, total: int, name: str) -> None:
            bar.update(line, total=total, completed=done, description=f"comparing, {name} done")

        rows = job.compare(
            methods or (), seed=seed, lr=lr, jobs=jobs, progress=progress, base=base, csv=data, steps=steps, dtype=dtype
        )
    seconds = time.perf_counter() - begun
    about = (
        f"{len(rows)} rows on {base or 'the decoder of the package'}, {data or 'the snippets of the package'}: "
        f"{len(task.train)} steps of {task.train[0].rows} examples, {sum(b.rows for b in task.test)} held-out ones, seed {seed}."
    )
    numbers = [dataclasses.asdict(r) for r in rows]
    if json_ is not None and str(json_) == "-":
        print(json.dumps(numbers, indent=2))
    else:
        terminal().print(job.table(rows))
        print(f"{about} {seconds:.0f} seconds.")
    if json_ is not None and str(json_) != "-":
        from minipeft.checkpoints.files import write_json

        write_json(json_, numbers)
    if html is not None:
        job.write_html(rows, html, about)
    if png is not None:
        job.write_png(rows, png)
    if any(not r.base_unchanged for r in rows):
        raise Bad("a base array was changed")
