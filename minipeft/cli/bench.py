"""`minipeft bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft.cli.common import Backend, Json, Outputs, known, one_of
from minipeft.cli.terminal import terminal

METHODS = ("lora", "prefix_tuning", "oft", "dora", "ia3", "houlsby")
SIZES = ("S", "M", "L", "XL", "GPT2")
TASKS = ("step", "forward", "generate")
DTYPES = ("float32", "bfloat16")


def bench(
    methods: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="lora, prefix_tuning, oft, dora, ia3, houlsby (default: all; of GPT2 lora alone).",
            autocompletion=one_of(*METHODS),
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
    threads: Annotated[int, typer.Option(min=1, help="Threads for both sides.")] = 2,
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
        typer.Option(help="Measure a LoRA step against length and rank; plots and numbers go into this folder."),
    ] = None,
    json_: Json = None,
    backend: Backend = None,
) -> None:
    """Time and peak memory of a training step, beside torch + PEFT on the same threads. On a GPU ours runs as CUDA graphs.

    Examples:
        minipeft bench lora --size S --rounds 3
        minipeft bench lora dora --size M --against peft
    """
    import os

    from minipeft import bench as job

    outputs = Outputs(json=json_)
    known("--dtype", dtype, DTYPES)
    if tf32:
        os.environ["MINIPEFT_TF32"] = "1"
    console = terminal(stderr=True)
    if profile:
        found = job.profile((size or ["M"])[0], (methods or ["lora"])[0], dtype=dtype)
        outputs.show(job.profile_table(found))
    elif sweep is not None:
        found = job.sweep(against, sweep, rounds, threads, console, dtype)
        outputs.show(job.table(found))
    else:
        sizes, methods = size or ["S", "M", "L"], methods or list(job.METHODS)
        found = job.bench(against, sizes, methods, rounds, threads, console, task or ["step"], compile_, dtype)
        outputs.show(job.table(found))
        for why in [r["compiled"] for r in found if "compiled" in r]:
            outputs.show(f"torch.compile does not work here: {why}")
    outputs.json(found)
