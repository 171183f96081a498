"""Regular files, open to be read, and JSON out of them: what is asked of every file before a byte of it is believed.

A pipe may never end, a device may do something when it is opened: only regular files are, and of a limited size where they are
read whole. JSON is counted before it becomes Python's values.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minipeft.errors import Bad, near
from minipeft.limits import JSON_BYTES, JSON_DEPTH, JSON_VALUES
from minipeft.shown import shortly

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def existing(path: str | Path, what: str = "file") -> Path:
    """The path, if it is there. Raises `Bad` with near misses among its neighbours."""
    path = Path(path)
    try:
        if path.exists():
            return path
        folder = path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        seen = folder.iterdir() if folder == path.parent and folder.is_dir() else ()
        hint = near(path.name, (p.name for p in seen if p.name[0] != "." or path.name[:1] == "."))
    except OSError as why:
        raise Bad(f"{path}: cannot be read: {why.strerror or why}") from None
    raise Bad(f"{path}: no such {what}{hint}")


def checkpoint(folder: str | Path) -> Path:
    """A checkpoint's folder, if it is there. Raises `Bad`, which tells what is expected, and of a name on a hub how to get it."""
    try:
        found = existing(folder, "folder")
    except Bad as why:
        said = f"{why}; expected one with config.json and model.safetensors"
        if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(folder)):
            name = str(folder).rpartition("/")[2]
            said += f" (of the Hugging Face hub: `hf download {folder} --local-dir {name}` makes one)"
        raise Bad(said) from None
    if not found.is_dir():
        raise Bad(f"{found}: expected a checkpoint folder, found a file")
    return found


@contextlib.contextmanager
def opened(path: str | Path, most: int | None = None, links: bool = True) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file, open to be read, and its size.

    Raises `Bad` for what is absent or no regular file, which is not opened, for a link unless `links`, and for more than
    `most` bytes. What lies there may be exchanged for something else at any moment: what was opened is looked at as well.
    """
    try:
        path = existing(path) if links else Path(path)
        _regular(path, path.stat() if links else path.lstat())
        flags = ("O_NONBLOCK", "O_BINARY", *(() if links else ("O_NOFOLLOW",)))
        handle = os.open(path, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in flags))
        with os.fdopen(handle, "rb") as f:
            about = os.fstat(handle)
            _regular(path, about)
            if most is not None and about.st_size > most:
                raise Bad(f"{path}: expected at most {most:,} bytes, found {about.st_size:,}")
            yield f, about.st_size
    except OSError as why:
        raise Bad(f"{path}: cannot be read: {why.strerror or why}") from None
    except MemoryError:
        raise Bad(f"{path}: cannot be read: there is not enough memory") from None


def _regular(path: Path, about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise Bad(f"{path}: expected a file, found {KINDS.get(stat.S_IFMT(about.st_mode), 'something else')}")


def place_of(path: str | Path) -> Path:
    """Where a file of this name lies or would lie, links followed. Raises `Bad` for what is there and is no file."""
    real = Path(os.path.realpath(path))
    try:
        if real.exists():
            _regular(Path(path), real.stat())
    except OSError as why:
        raise Bad(f"{path}: cannot be written: {why.strerror or why}") from None
    return real


def exactly(path: Path, f: BinaryIO, n: int) -> bytearray:
    """The next bytes of a file that is open, so many. Raises `Bad` if it has become shorter."""
    data = bytearray(n)
    if (found := f.readinto(data)) != n:  # type: ignore[attr-defined]
        raise Bad(f"{path}: changed while it was read: {n - found} bytes are gone")
    return data


def read_file(path: str | Path, most: int) -> bytearray:
    """The bytes of a regular file of at most so many."""
    with opened(path, most) as (f, size):
        return exactly(Path(path), f, size)


def read_text(path: str | Path, most: int) -> str:
    """The text of a regular file in UTF-8 of at most so many bytes."""
    try:
        return read_file(path, most).decode("utf-8")
    except UnicodeDecodeError as why:
        raise Bad(f"{path}: expected text in UTF-8: {why}") from None


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file. Raises `Bad` if it is absent or is no JSON (`parsed`)."""
    data = read_file(path, JSON_BYTES)
    try:
        return parsed(data)
    except Bad as why:
        raise Bad(f"{path}: {why}") from None


def parsed(data: bytes | bytearray, most: int = JSON_VALUES) -> Any:
    """JSON out of bytes. Raises `Bad` for more values than `most`, before they are made; for a key given twice, a number that is

    not finite, brackets deeper than `JSON_DEPTH` and half a character.
    """
    if (found := sum(map(data.count, (b",", b"[", b"{")))) > most:
        raise Bad(f"expected at most {most:,} commas and brackets, found {found:,}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_float=_finite, parse_constant=_finite)
        _shallow(value)
    except Bad:
        raise
    except RecursionError:
        raise Bad(f"expected JSON of at most {JSON_DEPTH} brackets inside one another, found more") from None
    except ValueError as why:  # it may be broken text, broken JSON, a number without end, or half a character
        raise Bad(f"expected JSON, {why}") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise Bad(f"it names {shortly(twice)} twice")
    return found


def _finite(word: str) -> float:
    if not math.isfinite(x := float(word)):
        raise Bad(f"expected JSON, found {shortly(word)}, which is no finite number")
    return x


def _shallow(value: Any) -> None:
    """Level by level: whether it ends soon enough, and whether its words can be written."""
    level: list[Any] = [[value]]
    for _ in range(JSON_DEPTH + 1):
        inner: list[Any] = []
        for given in level:
            for x in (*given, *given.values()) if isinstance(given, dict) else given:
                if isinstance(x, list | dict):
                    inner.append(x)
                elif isinstance(x, str):
                    x.encode()
        if not (level := inner):
            return
    raise RecursionError
