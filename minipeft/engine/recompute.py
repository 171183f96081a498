"""Computing twice what would take memory to keep (Chen et al. 2016, https://arxiv.org/abs/1604.06174, §4)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from minipeft.engine.tensor import Again, Node, making


def recomputed(f: Callable[[], Any], moment: Callable[[], Any], to: Callable[[Any], None]) -> Any:
    """f(), of which the tape keeps no more than f itself holds: the backward pass calls it again when it comes there.

    f must make the same ops of the same numbers each time. What it changes beside what it returns, `moment()` tells and
    `to(moment)` puts back: it has been done once when the gradients are there, and is there as before the second time.
    """
    then = moment()
    with making() as nodes:
        value = f()
    if nodes:
        again = _Computed(f, then, moment, to, nodes)
        for node in nodes:
            node.vjps, node.again = again, None
    return value


class _Computed(Again):
    """Stands for the closures of nodes that a function has made."""

    def __init__(self, f: Any, then: Any, moment: Any, to: Any, nodes: list[Node]) -> None:
        self.f, self.then, self.moment, self.to = f, then, moment, to
        self.nodes = [weakref.ref(node) for node in nodes]  # those that nobody asks for go as they would

    def fill(self) -> None:
        now = self.moment()
        self.to(self.then)
        with making() as made:
            self.f()
        self.to(now)
        old = [ref() for ref in self.nodes]
        if len(made) != len(old) or any(n and (n.name, n.shape) != (m.name, m.shape) for n, m in zip(old, made)):
            raise RuntimeError("recompute: computed again, a layer was made of other ops")
        for node, new in zip(old, made):
            if node is not None:
                node.vjps = new.vjps
        self.f = self.then = None
