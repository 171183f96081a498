"""`minipeft bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft.cli.common import Backend, terminal


def bench(
    against: Annotated[
        str | None, typer.Option(help="peft: run torch and PEFT in turns with us, and print ratios.")
    ] = None,
    size: Annotated[Optional[list[str]], typer.Option(help="S, M, L, XL or GPT2 (default: S, M and L).")] = None,  # noqa: UP045
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="lora, prefix_tuning, oft, dora, ia3, houlsby (default: all; of GPT2 lora alone)."),
    ] = None,
    task: Annotated[Optional[list[str]], typer.Option(help="step, forward or generate (default: step).")] = None,  # noqa: UP045
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Threads for both sides.")] = 2,
    compile_: Annotated[bool, typer.Option("--compile", help="Measure torch.compile beside it.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Where our step's time and bytes go, by op.")] = False,
    tf32: Annotated[bool, typer.Option("--tf32", help="On a GPU: products in TensorFloat-32, on both sides.")] = False,
    bf16: Annotated[
        bool,
        typer.Option(
            "--bf16",
            help="Our base held in bfloat16; theirs as model.to(torch.bfloat16), activations too. What stays float32 "
            "here may be rounded by --tf32 beside it.",
        ),
    ] = False,
    sweep: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Measure a LoRA step against length and rank; plots and numbers go into this folder."),
    ] = None,
    json_: Annotated[Optional[Path], typer.Option("--json", help="Write all numbers.")] = None,  # noqa: UP045
    backend: Backend = None,
) -> None:
    """Time and peak memory of a training step, beside torch + PEFT on the same threads. On a GPU ours runs as CUDA graphs.

    Example: [bold]minipeft bench --against peft --size M --method lora[/bold]
    """
    import os

    from minipeft import bench as job

    if tf32:
        os.environ["MINIPEFT_TF32"] = "1"
    console = terminal(stderr=True)
    dtype = "bfloat16" if bf16 else "float32"
    if profile:
        found = job.profile((size or ["M"])[0], (method or ["lora"])[0], dtype=dtype)
        terminal().print(job.profile_table(found))
    elif sweep is not None:
        found = job.sweep(against, sweep, rounds, threads, console, dtype)
        terminal().print(job.table(found))
    else:
        sizes, methods = size or ["S", "M", "L"], method or list(job.METHODS)
        found = job.bench(against, sizes, methods, rounds, threads, console, task or ["step"], compile_, dtype)
        terminal().print(job.table(found))
        for why in [r["compiled"] for r in found if "compiled" in r]:
            console.print(f"torch.compile does not work here: {why}", soft_wrap=True)
    if json_ is not None:
        from minipeft.checkpoints.files import write_json

        write_json(json_, found)
