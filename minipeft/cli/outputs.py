"""Where results go, and what is said beside them."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from minipeft.cli.terminal import plain, terminal
from minipeft.errors import Bad


def note(lines: Iterable[str]) -> None:
    """Lines on standard error that one should read: what was cut, left out, or looks odd."""
    for line in lines:
        print(plain(line), file=sys.stderr, flush=True)


class Outputs:
    """Where results go: files, and at most one on standard output, which then holds nothing else.

    `Outputs(json=json_, html=html)` is made before the work: a place that cannot be written is found then. Raises `Bad`.
    """

    def __init__(self, **paths: Path | None) -> None:
        self.paths = {name: path for name, path in paths.items() if path is not None}
        seen: dict[Path, str] = {}
        for name, path in self.paths.items():
            where = path if str(path) == "-" else path.resolve()
            if where in seen:
                raise Bad(f"--{seen[where]} and --{name} {path}: expected two places, found one")
            seen[where] = name
            if str(path) != "-":
                writable(f"--{name}", path)

    @property
    def spoken(self) -> bool:
        """Whether standard output is for people."""
        return not any(str(p) == "-" for p in self.paths.values())

    def show(self, *shown: Any) -> None:
        """For people: tables of rich, and text (as it is: its brackets are no styles)."""
        if self.spoken:
            console = terminal()
            for x in shown:
                if isinstance(x, str):
                    print("\n".join(plain(line) for line in x.split("\n")), flush=True)
                else:
                    console.print(x)

    def write(self, name: str, made: Callable[[], str | bytes]) -> None:
        """What `made` gives, to where --NAME says; not made if nobody asked."""
        from minipeft.checkpoints.files import write_bytes

        if (path := self.paths.get(name)) is None:
            return
        made_ = made()
        data = made_.encode("utf-8", "backslashreplace") if isinstance(made_, str) else made_
        if str(path) != "-":
            write_bytes(path, data)
        elif hasattr(sys.stdout, "buffer"):
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            sys.stdout.write(data.decode())

    def json(self, value: Any) -> None:
        """A value as JSON, to where --json says. What JSON has no number for is a word: "nan", "inf"."""
        self.write("json", lambda: json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def writable(flag: str, path: Path) -> None:
    """Raises `Bad` if no file can be written there."""
    from minipeft.checkpoints.files import place_of

    try:
        place_of(path)
    except Bad as why:
        raise Bad(f"{flag} {why}") from None
    there = next(p for p in (path.absolute().parent, *path.absolute().parent.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Bad(f"{flag} {path}: cannot be written: {there} is {'read-only' if there.is_dir() else 'no folder'}")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
