"""`minipeft compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from minipeft.cli.common import Backend, Base, Dtype, Html, Jobs, Json, LearningRate, Methods, Outputs, Png, Seed
from minipeft.cli.terminal import progress
from minipeft.errors import Bad


def compare(
    methods: Methods = None,
    base: Base = None,
    data: Annotated[Optional[Path], typer.Option(help="A CSV file with columns text, label and perhaps split.")] = None,  # noqa: UP045
    steps: Annotated[int, typer.Option(min=1, help="Training steps for each method.")] = 40,
    lr: LearningRate = None,
    seed: Seed = 0,
    jobs: Jobs = None,
    html: Html = None,
    png: Png = None,
    json_: Json = None,
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Adapt one base to one task with every method (or those named), and measure what each costs and gives.

    Examples:
        minipeft compare
        minipeft compare lora ia3 --steps 20 --html compare.html
        minipeft compare lora --base base/ --data reviews.csv
    """
    import dataclasses
    import time

    from minipeft import compare as job
    from minipeft.method import method_class

    begun = time.perf_counter()
    outputs = Outputs(html=html, png=png, json=json_)
    for name in methods or ():
        method_class(name)
    with progress("comparing") as tick:
        tick.doing("reading base and data")
        # here first: a mistake is found before any process starts
        task = job.prepare(base, data, steps=steps, seed=seed, dtype=dtype)
        rows = job.compare(
            methods or (), seed=seed, lr=lr, jobs=jobs, base=base, csv=data, steps=steps, dtype=dtype,
            progress=lambda done, total, name: tick.of(done, total, name, "done"),
        )  # fmt: skip
    seconds = time.perf_counter() - begun
    about = (
        f"{len(rows)} rows on {base or 'the decoder of the package'}, {data or 'the snippets of the package'}: "
        f"{len(task.train)} steps of {task.train[0].rows} examples, {sum(b.rows for b in task.test)} held-out ones, seed {seed}."
    )
    outputs.show(job.table(rows), f"{about} {seconds:.0f} seconds.")
    outputs.json([dataclasses.asdict(r) for r in rows])
    outputs.write("html", lambda: _written(job.write_html, rows, about))
    outputs.write("png", lambda: _written(job.write_png, rows))
    if any(not r.base_unchanged for r in rows):
        raise Bad("a base array was changed")


def _written(write: Any, rows: Any, *rest: Any) -> bytes:
    """What a function writes into a file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(rows, Path(folder) / "made", *rest)
        return (Path(folder) / "made").read_bytes()
