"""One forward and backward pass as plain data: every op, where it belongs, and what the tape keeps because of it."""

from __future__ import annotations

import dataclasses
import gc
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.engine.backend import to_host, xp
from minipeft.engine.tensor import Node, Tensor, backward, value
from minipeft.method import is_whole
from minipeft.model.batch import Batch
from minipeft.shown import described
from minipeft.tape.kept import gone, held
from minipeft.tape.watching import part_of, watched

TAPED, DROPPED, FROZEN = "taped", "dropped", "frozen"


@dataclass(frozen=True)
class Op:
    """An op of the forward pass.

    `state`: "taped", on the tape that the loss leads back through; "dropped", computed from what is on a tape, though no
    gradient comes back to it: a `stop_gradient` came after, or nobody used it; "frozen", computed from arrays alone.
    `came_from` are what a taped op was made of: numbers of ops, and keys of trained arrays. `kept` are the bytes that
    are alive until its gradient has been formed, and because of it.
    """

    number: int
    name: str
    part: str
    methods: tuple[str, ...]  # whose work it is; (): the model's own
    run: int  # 1, or more for methods of several passes
    state: str
    shape: tuple[int, ...] | None = None  # of the result of an op that made a node
    came_from: tuple[int | str, ...] = ()
    kept: int = 0


@dataclass(frozen=True)
class Array:
    """A trained array. `gradient` is the largest number of its gradient by size, None where none came back."""

    key: str
    name: str  # what the method calls it; a parameter that is trained whole has its own
    part: str  # "": shared by all parts
    shape: tuple[int, ...]
    bytes: int
    gradient: float | None


@dataclass(frozen=True)
class Stop:
    """A `stop_gradient`: in which part, of what (an op's number or a trained array's key), and which ops it alone keeps off the tape."""

    part: str
    run: int
    of: int | str
    cut: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A part of the model in one pass: a linear with its bias, a norm, a table, or the way to a site."""

    name: str
    run: int
    ops: tuple[Op, ...]
    arrays: tuple[Array, ...]
    stops: tuple[Stop, ...]

    __repr__ = described

    @property
    def layer(self) -> int | None:
        """The number of the layer that it is in."""
        return layer_of(self.name)

    @property
    def kept(self) -> int:
        """Bytes that its ops keep."""
        return sum(op.kept for op in self.ops)

    @property
    def state(self) -> str:
        """The most that happens here: "taped", "dropped", "frozen"."""
        return min((op.state for op in self.ops), key=(TAPED, DROPPED, FROZEN).index, default=FROZEN)

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods at work here."""
        return tuple(dict.fromkeys(m for op in self.ops for m in op.methods))


@dataclass(frozen=True)
class Tape:
    """One pass of an adapted model: all ops in order, the arrays that are trained, and where gradients are stopped."""

    label: str
    about: str  # the method with its settings, the model, the batch
    route: tuple[str, ...]  # the parts as passes come through them, also those where nothing is computed
    ops: tuple[Op, ...]
    arrays: tuple[Array, ...]
    stops: tuple[Stop, ...]
    loss: float

    __repr__ = described

    @property
    def taped(self) -> tuple[Op, ...]:
        """The ops on the tape."""
        return tuple(op for op in self.ops if op.state == TAPED)

    @property
    def kept(self) -> int:
        """Bytes that are alive between the forward pass and the backward pass because of the tape."""
        return sum(op.kept for op in self.ops)

    @property
    def trained(self) -> int:
        """How many numbers are trained."""
        return sum(int(np.prod(a.shape)) for a in self.arrays)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts in the order in which they were first come to, pass by pass."""
        last = {op.part: op.run for op in self.ops}  # where its arrays are told
        found = dict.fromkeys(sorted(((op.run, op.part) for op in self.ops), key=lambda place: place[0]))

        def part(run: int, name: str) -> Part:
            ops = tuple(op for op in self.ops if (op.run, op.part) == (run, name))
            arrays = tuple(a for a in self.arrays if a.part == name and last[name] == run)
            stops = tuple(s for s in self.stops if (s.run, s.part) == (run, name))
            return Part(name, run, ops, arrays, stops)

        return tuple(part(*place) for place in found)

    @property
    def elsewhere(self) -> tuple[Array, ...]:
        """Trained arrays that no one part has: those that all share, and those of parts that compute nothing."""
        names = {op.part for op in self.ops}
        return tuple(a for a in self.arrays if a.part not in names)

    @property
    def end(self) -> Part | None:
        """The part where the gradient ends: the first one that is on the tape. None without a tape."""
        return next((p for p in self.parts if p.state == TAPED), None)

    def to_json(self) -> dict[str, Any]:
        """All of it as dicts, lists, numbers and words; of a part the numbers of its ops."""
        end = self.end.name if self.end else None
        totals = dict(taped=len(self.taped), ops=len(self.ops), kept=self.kept, trained=self.trained, end=end)
        parts = [
            dict(name=p.name, run=p.run, layer=p.layer, state=p.state, kept=p.kept, ops=[op.number for op in p.ops])
            for p in self.parts
        ]
        return dataclasses.asdict(self) | dict(parts=parts, totals=totals)


def record(
    adapted: Adapted, batch: Batch, *, label: str = "", about: str = "", train: bool = True, seed: int = 0
) -> Tape:
    """The tape of one pass over a batch, forward and back. `train` and `seed` as in training: dropout is drawn.

    Raises `Bad` for a batch without labels and one that the model cannot compute.
    """
    leaves = {k: Tensor(v) for k, v in adapted.theta.items()}
    loss, watch = watched(adapted, leaves, batch, train, np.random.default_rng(seed))
    on = reachable([loss.node] if type(loss) is Tensor else [])
    names: dict[int, int | str] = {id(n): watch.call(n) for n in (*on, *reachable(node for _, node in watch.stops))}
    names |= {id(t.node): key for key, t in leaves.items()}
    made = {names[id(n)]: (tuple(n.shape), tuple(names[id(p)] for p in n.parents if p is not None)) for n in on}
    memory = {names[node]: found for node, found in held(on).items()}

    def stop(at: int, node: Node) -> Stop:
        label, of = watch.label(at), {names[id(n)] for n in reachable([node])}
        cut = sorted(n for n in of - made.keys() if isinstance(n, int))
        return Stop(label.part, label.run, names[id(node)], tuple(cut))

    stops = tuple(stop(at, node) for at, node in watch.stops)
    grads = backward(loss, xp.ones((), loss.dtype)) if on else {}
    trained = tuple(_array(adapted, key, t, grads.get(t.node)) for key, t in leaves.items())
    reached = float(to_host(value(loss)))
    watch.stops.clear()
    del loss, grads, leaves, on  # the tape has been used up: what it alone kept is gone
    gc.collect()

    def op(number: int) -> Op:
        call = watch.calls[number]
        label = watch.label(call.at)
        where = number, call.name, label.part, label.methods, label.run
        if number not in made:
            return Op(*where, DROPPED if call.taped else FROZEN)
        return Op(*where, TAPED, *made[number], gone(memory[number]))

    route = tuple(dict.fromkeys(label.part for _, label in watch.marks))
    return Tape(label, about, route, tuple(map(op, range(len(watch.calls)))), trained, stops, reached)


def _array(adapted: Adapted, key: str, t: Tensor, gradient: Any) -> Array:
    """A trained array, by its key in theta."""
    adapter, _, rest = key.partition("/")
    site, _, name = rest.rpartition(":")
    method = adapted.adapter(adapter).at.get(site)
    if method is not None and is_whole(method):
        name = site.rpartition(".")[2]
    most = None if gradient is None else float(to_host(abs(gradient).max()))
    return Array(key, name, part_of(site, adapted.run().has), tuple(t.shape), int(t.value.nbytes), most)


def reachable(nodes: Iterable[Node]) -> list[Node]:
    """These nodes and all that they were made of, in the order in which they were made."""
    found, stack = {}, list(nodes)
    while stack:
        node = stack.pop()
        if node is not None and id(node) not in found:
            found[id(node)] = node
            stack += node.parents
    return sorted(found.values(), key=lambda node: node.order)


def layer_of(part: str) -> int | None:
    """The number of the layer that a part is in, None outside of layers."""
    found = re.search(r"layers\.(\d+)", part)
    return int(found[1]) if found else None
