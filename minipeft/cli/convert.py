"""`minipeft convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minipeft.cli.common import Dtype, opened


def convert(
    base: Annotated[Path, typer.Argument(help="The base checkpoint folder.")],
    adapter: Annotated[Path, typer.Argument(help="The adapter folder to read.")],
    out: Annotated[Path, typer.Argument(help="The adapter folder to write, of the other kind.")],
    dtype: Dtype = None,
) -> None:
    """Turn an adapter of PEFT into one of minipeft, or the other way round.

    Example: [bold]minipeft convert base/ peft_adapter/ ours/[/bold]
    """
    from minipeft.checkpoints.native import save_adapter
    from minipeft.checkpoints.peft_io import save_peft

    adapted = opened(base, [adapter], dtype)
    ours = (adapter / "adapter.json").exists()
    (save_peft if ours else save_adapter)(adapted, out)
    a = adapted.adapters[0]
    print(f"{out}: {a.method.name}, {a.size:,} trained numbers, written for {'PEFT' if ours else 'minipeft'}")
