"""`minipeft convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minipeft.cli.adapters import folders_of, opened, refuse_place
from minipeft.cli.options import Base, Dtype
from minipeft.cli.terminal import plain, progress
from minipeft.errors import Bad


def convert(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="[BASE] ADAPTER OUT",
            help="The adapter folder to read, and the one to write, of the other kind. The base may stand first.",
        ),
    ],
    base: Base = None,
    dtype: Dtype = None,
) -> None:
    """Turn an adapter of PEFT into one of minipeft, or the other way round.

    Example:
        minipeft convert adapter/ for_peft/
        minipeft convert peft_adapter/ ours/ --base base/
    """
    from minipeft.checkpoints.native import save_adapter
    from minipeft.checkpoints.peft_io import save_peft

    base, adapters, out = folders_of(folders, base)
    if len(adapters) > 1:
        raise Bad(f"expected one adapter folder and one to write, found {', '.join(map(str, [*adapters, out]))}")
    ours = (adapters[0] / "adapter.json").exists()
    kind = "PEFT" if ours else "minipeft"
    refuse_place(out, kind, base, *adapters)
    with progress("converting") as tick:
        tick.doing("reading base and adapter")
        adapted = opened(base, adapters, dtype)
        (save_peft if ours else save_adapter)(adapted, out)
    a = adapted.adapters[0]
    print(plain(f"{out}: {a.method.name}, {a.size:,} trained numbers, written for {kind}"))
