"""`minipeft bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from minipeft.bench import METHODS, SIZES, TASKS, fits
from minipeft.cli.options import Backend, Json, Set, Targets, Workers, known, many, named, one_of
from minipeft.cli.outputs import Outputs
from minipeft.cli.settings import chosen_settings, settings_not_for
from minipeft.cli.terminal import Kept, progress
from minipeft.errors import Bad

ALONE = ", ".join(m for m in METHODS if fits(m, "GPT2"))
DTYPES = ("float32", "bfloat16")


def bench(
    methods: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help=f"{', '.join(METHODS)} (default: all; of GPT2 {ALONE} alone).",
            autocompletion=one_of(*METHODS),
            callback=named,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="peft: run torch and PEFT in turns with us, and print ratios.", autocompletion=one_of("peft")
        ),
    ] = None,
    size: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="S, M, L, XL or GPT2 (default: S, M and L).", autocompletion=one_of(*SIZES)),
    ] = None,
    task: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="step, forward or generate (default: step).", autocompletion=one_of(*TASKS)),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 7,
    threads: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(min=1, max=1024, help="Threads for both sides; several numbers one after another (default: 2)."),
    ] = None,
    workers: Workers = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Measure torch.compile beside it.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Where our step's time and bytes go, by op.")] = False,
    tf32: Annotated[bool, typer.Option("--tf32", help="On a GPU: products in TensorFloat-32, on both sides.")] = False,
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, or bfloat16: our base held so; theirs as model.to(torch.bfloat16), activations too. What "
            "stays float32 here may be rounded by --tf32 beside it.",
            autocompletion=one_of(*DTYPES),
        ),
    ] = "float32",
    sweep: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help=f"Measure a step of {METHODS[0]} against length and rank; plots and numbers go into this folder."
        ),
    ] = None,
    set_: Set = None,
    targets: Targets = None,
    json_: Json = None,
    backend: Backend = None,
) -> None:
    """Time and peak memory of a training step, beside torch + PEFT on the same threads. On a GPU ours runs as CUDA graphs.

    Examples:
        minipeft bench METHOD --size S
        minipeft bench METHOD OTHER --size S --set r=16 --targets q_proj
        minipeft bench METHOD OTHER --size M --against peft
    """
    import os

    from minipeft import bench as job
    from minipeft.method import method_class

    outputs = Outputs(json=json_)
    known("--dtype", dtype, DTYPES)
    if tf32:
        os.environ["MINIPEFT_TF32"] = "1"
    if profile:
        _refused("--profile", sweep=sweep, against=against, task=task, compile=compile_, workers=workers)
        if len(size or ()) > 1 or len(methods or ()) > 1:
            raise Bad("--profile: expected one size and one method")
        method = (methods or METHODS)[0]
        given = chosen_settings([method_class(method)], set_, targets)[method]
        return _profile(outputs, (size or ["M"])[0], method, dtype, given)
    if sweep is not None:
        _refused(
            "--sweep",
            METHODS=methods,
            size=size,
            task=task,
            compile=compile_,
            set=set_,
            targets=targets,
            workers=workers,
        )
        asked = job.sweep(against, rounds, threads or 2, dtype)
    else:
        sizes, methods = size or ["S", "M", "L"], methods or list(METHODS)
        given = chosen_settings([method_class(m) for m in methods], set_, targets)
        settings_not_for(given, set_)
        asked = job.plan(
            against, sizes, methods, rounds, threads or 2, task or ["step"], compile_, dtype, given, many(workers)
        )
    print(f"minipeft: {asked}", file=sys.stderr, flush=True)
    rows: Kept[dict] = Kept()
    with rows, progress("measuring", len(asked.rows) * len(asked.threads)) as tick:

        def keep(row: dict) -> None:
            rows.append(row)
            tick(f"{row['task']} {row['method']} {row['size']}", "" if outputs.spoken else job.said(row))
            head = [job.heading(asked)] if len(rows) == 1 else []
            for line in (*head, *job.lines(row, asked)) if outputs.spoken else ():
                tick.line(line)

        job.bench(asked, keep, tick.doing)
    if rows:
        outputs.show("", job.TOLD)
    outputs.show(*job.failures(rows))
    outputs.json(list(rows))
    if sweep is not None and rows:
        job.write_sweep(sweep, list(rows), against)
    rows.finish()
    if any(side != "compiled" for row in rows for side in row.get("failed", ())):
        raise typer.Exit(1)


def _refused(flag: str, **beside: object) -> None:
    """Raises `Bad` for what was given and would not be honoured."""
    for name, value in beside.items():
        if value:
            raise Bad(f"{flag}: {name if name.isupper() else '--' + name} beside it has no meaning")


def _profile(outputs: Outputs, size: str, method: str, dtype: str, given: dict[str, Any]) -> None:
    import rich.table  # noqa: F401

    from minipeft import bench as job

    steps = 5
    rows: Kept[dict] = Kept()
    with rows, progress("profiling", steps) as tick:
        tick.doing(f"{method} {size}")

        def so_far(found: list[dict]) -> None:
            rows[:] = found
            tick(f"{method} {size}")

        job.profile(size, method, steps, dtype, so_far, given)
    if rows:
        outputs.show(job.profile_table(rows))
    outputs.json(list(rows))
    rows.finish()
