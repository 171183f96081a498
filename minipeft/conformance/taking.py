"""Files that nobody vouches for: of a program under test, or of a folder of cases. They are read whole and within a bound."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import safetensors

from minipeft.checkpoints.files import DTYPES, opened
from minipeft.conformance.schema import short
from minipeft.errors import Bad
from minipeft.limits import HEADER_BYTES, RESULT_BYTES

HELD = {name: np.dtype(kind).newbyteorder("<") for name, kind in DTYPES.items() if name != "BF16"}  # as NumPy has them


def contents(path: Path, most: int, links: bool = True) -> bytes:
    """The bytes of a file. Raises `Bad` for what is no file, for more than `most` bytes, and for a link unless `links`."""
    with opened(path, most, links) as (f, _):
        data = f.read(most + 1)  # it may have grown
    if len(data) > most:
        raise Bad(f"{path}: expected at most {most:,} bytes, found more")
    return data


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
