"""The host's replacements: rows, products, attention, and here what is left."""

from __future__ import annotations

from typing import Any

from minipeft.engine import ops, tensor
from minipeft.engine.backend import xp
from minipeft.engine.fast import attention, products, replaces, rows
from minipeft.engine.tensor import Array

__all__ = ["add_at", "attention", "products", "put", "rows"]


_known: dict[tuple, tuple[Any, bool]] = {}  # by the identity of an index: the index, so that it lives, and the answer
MOST = 256  # indices remembered


def _distinct(shape: tuple, index: Any) -> bool:
    """Whether an index names no entry twice; asked once of an index, which a method keeps as it is."""
    parts = index if isinstance(index, tuple) else (index,)
    key = shape, *(id(part) if hasattr(part, "shape") else repr(part) for part in parts)
    if key not in _known:
        seen = xp.zeros(shape, bool)
        seen[index] = True
        while len(_known) >= MOST:
            del _known[next(iter(_known))]
        _known[key] = index, int(seen.sum()) == seen[index].size
    return _known[key][1]


@replaces(ops.put, "numpy")
@replaces(ops.put, "cupy")
def put(x: Array, *, index: Any, shape: tuple) -> Any:
    """Entries that are named once are written, not added."""
    y = xp.zeros(shape, x.dtype)
    if _distinct(shape, index):
        y[index] = x
    else:
        xp.add.at(y, index, x)
    return y, (lambda g: g[index],)


@replaces(tensor.add_at, "numpy")
@replaces(tensor.add_at, "cupy")
def add_at(x: Array, index: Any, g: Array) -> None:
    """What slices and integers name, they name once."""
    parts = index if isinstance(index, tuple) else (index,)
    if all(isinstance(i, int | slice | type(None) | type(Ellipsis)) for i in parts):
        x[index] += g
    else:
        xp.add.at(x, index, g)
