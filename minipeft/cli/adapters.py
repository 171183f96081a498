"""A base and adapters from the folders of a command line, and where an adapter may be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minipeft.errors import Bad


def base_folder(base: Path | None) -> Path:
    """The folder that --base names, by default the decoder of the package."""
    from minipeft.data import BASE

    return BASE if base is None else base


def folders_of(folders: Sequence[Path], base: Path | None) -> tuple[Path, list[Path], Path]:
    """Base, adapters and where to write, from the folders of a command line; the base is an option, or stands first.

    Raises `Bad` if there are too few.
    """
    first, *rest = folders
    if (
        base is None
        and len(rest) > 1
        and not any((first / f).exists() for f in ("adapter.json", "adapter_config.json"))
    ):
        base, folders = first, rest
    if len(folders) < 2:
        raise Bad(f"{folders[0]}: expected an adapter folder and a folder to write, found one folder")
    return base_folder(base), list(folders[:-1]), folders[-1]


def refuse_place(out: Path, kind: str, *read: Path) -> None:
    """Raises `Bad` if an adapter of this kind, "minipeft" or "PEFT", cannot have `out` as its folder.

    It cannot be one that is `read`, a checkpoint, which transformers would load with the adapter, or hold an adapter of
    the other kind, since a folder is read as one or the other.
    """
    from minipeft.checkpoints.files import refuse_read

    refuse_read(out, *read)
    other = "adapter_config.json" if kind == "minipeft" else "adapter.json"
    for name, what in (("config.json", "a checkpoint"), (other, "an adapter of the other kind")):
        if (out / name).exists():
            raise Bad(f"{out}: holds {name}, so it is {what}; give another folder for an adapter of {kind}")


def opened(base: Path, folders: Sequence[Path], dtype: str | None = None) -> Any:
    """A base with adapter folders of either kind, in their order; the base is held as they were trained, unless `dtype` says how.

    Several adapters are called after their folders.
    """
    from minipeft.checkpoints import load
    from minipeft.checkpoints.files import checkpoint, existing
    from minipeft.checkpoints.native import trained_in

    checkpoint(base)
    ours = [f for f in folders if (existing(f, "folder") / "adapter.json").exists()]
    model = load(base, dtype or next(filter(None, map(trained_in, ours)), None))
    for folder, name in zip(folders, _called(folders)):
        model = attached(model, folder, name)
    return model


def _called(folders: Sequence[Path]) -> list[str | None]:
    import re

    if len(folders) == 1:
        return [None]
    names = [re.sub(r"[^\w.-]+", "_", f.resolve().name) for f in folders]
    return [n if names.count(n) == 1 else f"{n}_{i}" for i, n in enumerate(names, 1)]


def attached(model: Any, folder: Path, name: str | None = None) -> Any:
    """The model with an adapter folder of either kind."""
    from minipeft.checkpoints.files import existing
    from minipeft.checkpoints.native import load_adapter
    from minipeft.interop.peft.reading import load_peft

    existing(folder, "folder")
    if (folder / "adapter.json").exists():
        return load_adapter(model, folder, name=name)
    if (folder / "adapter_config.json").exists() or any(folder.glob("*/adapter_config.json")):
        return load_peft(model, folder, name or "default")
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    raise Bad(f"{folder}: expected adapter.json (ours) or adapter_config.json (PEFT's), found {shown or 'nothing'}")
