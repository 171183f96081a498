"""`minipeft merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft.cli.adapters import folders_of, opened
from minipeft.cli.options import DTYPES, Backend, Base, Weight, known, one_of
from minipeft.cli.terminal import plain, progress
from minipeft.errors import Bad

WRITTEN = (*DTYPES, "float16")


def merge(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="[BASE] ADAPTER... OUT",
            help="Adapter folders, ours or PEFT's, and the folder for the merged checkpoint. The base may stand first.",
        ),
    ],
    base: Base = None,
    weight: Weight = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--dtype",
            autocompletion=one_of(*WRITTEN),
            help=f"What is written: {', '.join(WRITTEN)}; bfloat16: the matrices, all else float32. Default: the type of the "
            "base's files.",
        ),
    ] = None,
    backend: Backend = None,
) -> None:
    """Fold adapters into their base: an ordinary checkpoint that transformers loads.

    It is read back before it gets its place, and must compute what the adapted model computes. The last line says how far
    apart the two are, and what rounding to the type of the base's files costs.

    Example:
        minipeft merge adapter/ merged/
        minipeft merge peft_adapter/ merged/ --base base/
        minipeft merge adapter/ peft_adapter/ merged/ --weight 0.7 --weight 0.3
    """
    from minipeft.checkpoints.merged import save_merged

    if dtype is not None:
        known("--dtype", dtype, WRITTEN)
    base, adapters, out = folders_of(folders, base)
    if weight and len(weight) != len(adapters):
        raise Bad(f"--weight: expected one for each of {len(adapters)} adapters, found {len(weight)}")
    with progress("merging") as tick:
        tick.doing("reading base and adapters")
        adapted = opened(base, adapters)
        if weight:
            adapted = adapted.using(**{a.name: w for a, w in zip(adapted.adapters, weight)})
        tick.doing("folding, writing, and reading back")
        found = save_merged(adapted, base, out, dtype=dtype, spared=adapters)
    print(plain(f"{out}: {found}"))
