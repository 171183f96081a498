"""`minipeft merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft.cli.common import DTYPES, Backend, opened
from minipeft.errors import Bad, near

WRITTEN = (*DTYPES, "float16")


def merge(
    base: Annotated[Path, typer.Argument(help="The base checkpoint folder.")],
    adapters: Annotated[list[Path], typer.Argument(help="One adapter folder or several, ours or PEFT's.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged checkpoint.")],
    weight: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option("--weight", help="One for each adapter, W + Σ weight · its change; without, they stack in order."),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help=f"What is written: {', '.join(WRITTEN)} (bfloat16: the matrices, all else float32). Default: the type that "
            "the base's files have."
        ),
    ] = None,
    backend: Backend = None,
) -> None:
    """Fold adapters into their base: an ordinary checkpoint that transformers loads.

    It is read back before it gets its place, and must compute what the adapted model does; the last line says how far apart
    they are, and what rounding to the base's type costs.

    Example: [bold]minipeft merge base/ adapter/ merged/[/bold]

    Two at once: [bold]minipeft merge base/ one/ two/ merged/ --weight 0.7 --weight 0.3[/bold]
    """
    from minipeft.checkpoints.merged import save_merged

    if dtype not in (None, *WRITTEN):
        raise Bad(f"--dtype {dtype}: expected one of {', '.join(WRITTEN)}{near(str(dtype), WRITTEN)}")
    if weight and len(weight) != len(adapters):
        raise Bad(f"--weight: expected one for each of {len(adapters)} adapters, found {len(weight)}")
    adapted = opened(base, adapters)
    if weight:
        adapted = adapted.using(**{a.name: w for a, w in zip(adapted.adapters, weight)})
    print(f"{out}: {save_merged(adapted, base, out, dtype=dtype, spared=adapters)}")
