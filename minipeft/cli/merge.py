"""`minipeft merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minipeft.cli.common import Backend, Base, Dtype, attached, base_folder
from minipeft.cli.terminal import plain, progress


def merge(
    adapter: Annotated[Path, typer.Argument(help="An adapter folder, ours or PEFT's.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged checkpoint.")],
    base: Base = None,
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Fold an adapter into its base: an ordinary checkpoint that transformers loads.

    Example:
        minipeft merge adapter/ merged/
        minipeft merge peft_adapter/ merged/ --base base/
    """
    from minipeft.checkpoints import load, save_model
    from minipeft.checkpoints.files import read_json
    from minipeft.run import merge as fold

    base = base_folder(base)
    with progress("merging") as tick:
        tick.doing("reading the base")
        model = load(base, dtype)
        tick.doing("folding the adapter in")
        merged = fold(attached(model, adapter))
        tick.doing("writing the checkpoint")
        save_model(merged, out, read_json(base / "config.json"))
    for extra in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (base / extra).exists():
            from minipeft.checkpoints.files import write_bytes

            write_bytes(out / extra, (base / extra).read_bytes())
    print(plain(f"{out}: {merged.size:,} parameters, {merged.dtype}"))
