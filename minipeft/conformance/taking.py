"""Files that nobody vouches for: of a program under test, or of a folder of cases. They are read whole and within a bound."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

import numpy as np
import safetensors

from minipeft.checkpoints.files import DTYPES
from minipeft.conformance.schema import short
from minipeft.errors import Bad
from minipeft.limits import HEADER_BYTES, RESULT_BYTES

KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a link"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
    (lambda mode: True, "a device"),
)  # fmt: skip
HELD = {name: np.dtype(kind).newbyteorder("<") for name, kind in DTYPES.items() if name != "BF16"}  # as NumPy has them


def contents(path: Path, most: int, links: bool = True) -> bytes:
    """The bytes of a file. Raises `Bad` for what is no file, for more than `most` bytes, and for a link unless `links`.

    What lies there may be exchanged for something else at any moment: what was opened is looked at, not what was found.
    """
    try:
        mode = (path.stat() if links else path.lstat()).st_mode
        if not stat.S_ISREG(mode):
            raise Bad(f"{path}: expected a file, found {next(name for test, name in KINDS if test(mode))}")
        flags = ("O_NONBLOCK", "O_BINARY", *(() if links else ("O_NOFOLLOW",)))
        handle = os.open(path, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in flags))
        try:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise Bad(f"{path}: expected a file, found another thing from one moment to the next")
            if about.st_size > most:
                raise Bad(f"{path}: expected at most {most:,} bytes, found {about.st_size:,}")
            data = bytearray()
            while len(data) <= most and (part := os.read(handle, 1 << 16)):
                data += part
        finally:
            os.close(handle)
    except (OSError, ValueError) as why:  # a ValueError of a zero in its name
        if isinstance(why, Bad):
            raise
        raise Bad(f"{path}: cannot be read: {getattr(why, 'strerror', None) or why}") from None
    if len(data) > most:
        raise Bad(f"{path}: expected at most {most:,} bytes, found more")
    return bytes(data)


def arrays(data: bytes, wanted: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file that was read, those of some names alone if they are given. Raises `Bad`.

    A tensor that is not wanted and that NumPy has no dtype for is left out.
    """
    length = int.from_bytes(data[:8], "little")
    if length > HEADER_BYTES:
        raise Bad(
            f"expected a safetensors file whose header has at most {HEADER_BYTES:,} bytes, found one of {length:,}"
        )
    out = {}
    try:
        for name, entry in safetensors.deserialize(data):
            if entry["dtype"] in HELD:
                out[name] = np.frombuffer(entry["data"], HELD[entry["dtype"]]).reshape(entry["shape"])
            elif wanted is None or name in wanted:
                raise Bad(f"{short(name)} has dtype {entry['dtype']}; expected one of {', '.join(HELD)}")
    except Bad:
        raise
    except (safetensors.SafetensorError, ValueError, OverflowError) as why:
        raise Bad(f"expected a safetensors file: {str(why)[:200]}") from None
    return out


def result(path: Path, wanted: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """What a program under test has written. Raises `Bad`, which speaks of `its output`, for anything else."""
    try:
        return arrays(contents(path, RESULT_BYTES, links=False), wanted)
    except Bad as why:
        told = str(why).replace(str(path), "its output")
        raise Bad(told if told.startswith("its output") else f"its output: {told}") from None


def there(path: Path) -> bool:
    """Whether anything of that name is there, be it a link to nowhere."""
    with contextlib.suppress(OSError, ValueError):
        return os.path.lexists(path)
    return False
