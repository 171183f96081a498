"""What the commands share: the terminal, options that mean the same everywhere, models and adapters from folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from minipeft.errors import Bad


def terminal(stderr: bool = False) -> Any:
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 200  # a table in a pipe is not folded
    return Console(stderr=stderr, width=wide, soft_wrap=stderr, highlight=False)


def _use(name: str | None) -> str | None:
    if name is not None:
        from minipeft.engine.backend import use

        use(name)
    return name


Backend = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--backend", callback=_use, help="numpy or cupy (default: MINIPEFT_BACKEND, else numpy)."),
]


def _known_dtype(name: str | None) -> str | None:
    if name not in (None, *DTYPES):
        from minipeft.errors import near

        raise Bad(f"--dtype {name}: expected one of {', '.join(DTYPES)}{near(str(name), DTYPES)}")
    return name


DTYPES = ("float32", "float64", "bfloat16")
Dtype = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--dtype",
        callback=_known_dtype,
        help="float32, float64, or bfloat16: matrices of the base are held so, all else is float32. An adapter belongs "
        "to the base in the type that it was trained on. Default: float32.",
    ),
]


def settings(cls: Any, arch: Any, given: Sequence[str]) -> Any:
    """The method with settings given as words, read as its fields' types."""
    import ast
    import dataclasses

    from minipeft.errors import near

    base = cls.sized(arch)
    known = {f.name: getattr(base, f.name) for f in dataclasses.fields(cls)}
    chosen = {}
    for word in given:
        key, eq, text = word.partition("=")
        if not eq or key not in known:
            raise Bad(f"--set {word}: {cls.name} has no setting {key!r}{near(key, known)}; it has {', '.join(known)}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if isinstance(known[key], float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if known[key] is not None and value is not None and type(value) is not type(known[key]):
            raise Bad(
                f"--set {word}: expected {type(known[key]).__name__} like {known[key]!r}, found {type(value).__name__}"
            )
        chosen[key] = value
    return dataclasses.replace(base, **chosen)


def opened(base: Path, folders: Sequence[Path], dtype: str | None = None) -> Any:
    """A base with adapter folders of either kind, in their order; the base is held as they were trained, unless `dtype` says how.

    Several adapters are called after their folders.
    """
    from minipeft.checkpoints import load
    from minipeft.checkpoints.files import existing
    from minipeft.checkpoints.native import trained_in

    existing(base, "folder")
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
    from minipeft.checkpoints.peft_io import load_peft

    existing(folder, "folder")
    if (folder / "adapter.json").exists():
        return load_adapter(model, folder, name=name)
    if (folder / "adapter_config.json").exists():
        return load_peft(model, folder, name or "default")
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    raise Bad(
        f"{folder}: expected adapter.json (ours) or adapter_config.json (PEFT's), found {', '.join(found) or 'nothing'}"
    )
