"""`minipeft convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minipeft.cli.common import Base, Dtype, attached, base_folder
from minipeft.cli.terminal import plain, progress


def convert(
    adapter: Annotated[Path, typer.Argument(help="The adapter folder to read.")],
    out: Annotated[Path, typer.Argument(help="The adapter folder to write, of the other kind.")],
    base: Base = None,
    dtype: Dtype = None,
) -> None:
    """Turn an adapter of PEFT into one of minipeft, or the other way round.

    Example:
        minipeft convert adapter/ for_peft/
        minipeft convert peft_adapter/ ours/ --base base/
    """
    from minipeft.checkpoints import load
    from minipeft.checkpoints.native import save_adapter
    from minipeft.checkpoints.peft_io import save_peft

    with progress("converting") as tick:
        tick.doing("reading the base")
        model = load(base_folder(base), dtype)
        tick.doing("the adapter")
        adapted = attached(model, adapter)
        ours = (adapter / "adapter.json").exists()
        (save_peft if ours else save_adapter)(adapted, out)
    a = adapted.adapters[0]
    print(plain(f"{out}: {a.method.name}, {a.size:,} trained numbers, written for {'PEFT' if ours else 'minipeft'}"))
