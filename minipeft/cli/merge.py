"""`minipeft merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minipeft.cli.common import Backend, Dtype, attached


def merge(
    base: Annotated[Path, typer.Argument(help="The base checkpoint folder.")],
    adapter: Annotated[Path, typer.Argument(help="An adapter folder, ours or PEFT's.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged checkpoint.")],
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Fold an adapter into its base: an ordinary checkpoint that transformers loads.

    Example: [bold]minipeft merge base/ adapter/ merged/[/bold]
    """
    from minipeft.checkpoints import load, save_model
    from minipeft.checkpoints.files import read_json
    from minipeft.run import merge as fold

    merged = fold(attached(load(base, dtype), adapter))
    save_model(merged, out, read_json(base / "config.json"))
    for extra in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (base / extra).exists():
            from minipeft.checkpoints.files import write_bytes

            write_bytes(out / extra, (base / extra).read_bytes())
    print(f"{out}: {merged.size:,} parameters, {merged.dtype}")
