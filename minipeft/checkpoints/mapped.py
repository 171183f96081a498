"""Tensors of a safetensors file, mapped into memory: a base of any size is opened without being read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minipeft.checkpoints.files import DTYPES, header_of, opened
from minipeft.engine.backend import name as backend
from minipeft.engine.mapped import Mapped

READ_AT_ONCE = 1 << 28  # bytes: smaller checkpoints are read whole, so that NaN is found when they are opened


def is_large(*paths: Path) -> bool:
    """Whether these files are mapped: together they are large, and the host computes."""
    return backend() == "numpy" and sum(p.stat().st_size for p in paths if p.is_file()) > READ_AT_ONCE


def map_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a file, by name: floats as `Mapped`, all else as arrays. Raises `Bad` as `read_header` does."""
    with opened(path) as (f, size):
        header, start = header_of(path, f, size)
        file = np.memmap(f, np.uint8, "r", shape=(size,))
    out: dict[str, Any] = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        dtype, raw = np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<"), np.asarray(file[start + begin : start + end])
        a, bits = raw.view(dtype).reshape(entry["shape"]), entry["dtype"] == "BF16"
        out[key] = Mapped(a, f"{path}: {key}", bits) if bits or a.dtype.kind == "f" else np.require(a, None, "A")
    return out
