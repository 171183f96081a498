"""What a tape keeps: the arrays that the closures of its nodes hold, and that are gone when it has been used up."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from minipeft.engine.backend import xp
from minipeft.engine.tensor import Node

Memory = list[tuple[weakref.ref, int]]


def held(nodes: Iterable[Node]) -> dict[int, Memory]:
    """{id of a node: the memory that its closures hold}, for nodes in order; what several hold is the first one's."""
    seen: set[int] = set()
    found: dict[int, Memory] = {}
    for node in nodes:
        owners = {id(x): x for x in map(owner, arrays(node.vjps)) if id(x) not in seen and isinstance(x, xp.ndarray)}
        seen |= owners.keys()
        found[id(node)] = [(weakref.ref(x), int(x.nbytes)) for x in owners.values()]
    return found


def gone(memory: Memory) -> int:
    """How many bytes of it nobody holds any more."""
    return sum(size for array, size in memory if array() is None)


def owner(x: Any) -> Any:
    """Whose memory an array is a view of: the whole of it is kept."""
    while True:
        under = x.obj if isinstance(x, memoryview) else getattr(x, "base", None)
        if under is None:
            return x
        x = under


def arrays(root: Any) -> Iterator[Any]:
    """All arrays that an object leads to, by closures, containers and attributes; not those of other nodes."""
    seen: dict[int, Any] = {}
    stack = [root]
    while stack:
        x = stack.pop()
        if id(x) in seen or isinstance(x, type | ModuleType | Node):
            continue
        seen[id(x)] = x
        if isinstance(x, xp.ndarray):
            yield x
        elif isinstance(x, FunctionType):  # what it was made over; its globals are a module's
            stack += [x.__closure__, x.__defaults__, x.__kwdefaults__]
        elif isinstance(x, Mapping):
            stack += x.values()
        else:
            stack += gc.get_referents(x)
