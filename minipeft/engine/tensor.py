"""Reverse-mode differentiation: a Tensor is an array with a place on the tape.

Only what is being differentiated is ever a Tensor. A frozen weight is a plain array, so no gradient for it can be
asked for, and the activation that only that gradient would need is not kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import wraps
from itertools import count
from typing import Any, NamedTuple

from minipeft.engine.backend import name as backend_name
from minipeft.engine.backend import xp

Array = Any  # numpy.ndarray or cupy.ndarray
OPS: dict[str, Callable] = {}  # name -> op, in the order of definition
COMPOSED: set[str] = set()  # names of those that are written in other ops

_order = count()


class Node:
    """One taped result: the op that made it, from what, and how its gradient goes back there. Holds no value.

    `again()`, if there is one, makes its value again of what its closures hold: who needs it later need not keep it.
    """

    __slots__ = ("__weakref__", "again", "dtype", "name", "order", "parents", "shape", "vjps")

    def __init__(self, shape: tuple, dtype: Any, parents: tuple, vjps: Any, name: str = "") -> None:
        self.shape, self.dtype, self.parents, self.vjps, self.name = shape, dtype, parents, vjps, name
        self.again: Callable[[], Array] | None = None
        self.order = next(_order)


class Again:
    """In place of the closures of several nodes: `fill` puts them there when the first is asked for."""

    def fill(self) -> None:
        """Give each node its closures."""
        raise TypeError(f"{type(self).__name__} does not say how")


_made: ContextVar[list[Node] | None] = ContextVar("made", default=None)


@contextlib.contextmanager
def making() -> Iterator[list[Node]]:
    """Within this context the list has the nodes that ops make, in their order."""
    token = _made.set([])
    try:
        yield _made.get()  # type: ignore[misc]
    finally:
        _made.reset(token)


def now() -> int:
    """A number after those of all nodes that were made, and before those of all that will be."""
    return next(_order)


class Tensor:
    """An array under differentiation. `value` is the array, `node` its place on the tape."""

    __slots__ = ("node", "value")
    __array_ufunc__ = None  # lets `array + tensor` reach Tensor.__radd__

    def __init__(self, value: Array, node: Node | None = None) -> None:
        self.value = value
        self.node = node or Node(value.shape, value.dtype, (), ())

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)

    def __repr__(self) -> str:
        few = self.size <= 32
        return f"Tensor({self.value!r})" if few else f"Tensor({self.dtype} {self.shape}, {self.node.name or 'a leaf'})"

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        raise TypeError("a Tensor has no truth value; compare its .value")


class Put:
    """A gradient that is zero but at `index`: the backward pass adds it there instead of spreading it out first."""

    __slots__ = ("g", "index")

    def __init__(self, index: Any, g: Array) -> None:
        self.index, self.g = index, g


class Onto:
    """A gradient that is computed together with the sum it is part of.

    `onto(have, ours)` gives have + gradient, have being None where nothing was added up before; it may write to `have` if
    that is `ours`.
    """

    __slots__ = ("onto",)

    def __init__(self, onto: Callable[[Array | None, bool], Array]) -> None:
        self.onto = onto


# --- ops and what may stand for them ----------------------------------------------------------------------------------


class Replacement(NamedTuple):
    """Another way to compute what a function of the text does: see `minipeft.engine.fast`.

    `when(*args, **constants)`, if given, says whether it may; `asks` what it wants to be told of every argument, of ASKED.
    `other` is asked where it may not.
    """

    by: Callable
    when: Callable[..., bool] | None = None
    asks: tuple[str, ...] = ()
    other: Any = None  # Replacement | None

    def of(self, args: tuple, constants: dict[str, Any]) -> Replacement | None:
        """The one that is taken here: this, or the next that may; None for the text."""
        found: Replacement | None = self
        while found is not None and found.when is not None and not found.when(*args, **constants):
            found = found.other
        return found


ASKED: dict[str, Callable[[Any], Any]] = {
    "wanted": lambda a: type(a) is Tensor,  # whether its gradient will be asked for
    "again": lambda a: a.node.again if type(a) is Tensor else None,  # how it is made again, None: it must be kept
}


class _Unchosen(dict):
    """Stands for the replacements until a backend is chosen, which it then is."""

    def get(self, name: str, default: Any = None) -> Any:
        backend_name()
        return _replaced.get(name, default)


_replaced: dict[str, Replacement] = _Unchosen()
_here: ContextVar[dict[str, Replacement] | None] = ContextVar("replacements", default=None)  # of this thread alone


def take(replacements: dict[str, Replacement]) -> dict[str, Replacement]:
    """From now on these stand for the functions of their names, in every thread; returns those that did."""
    global _replaced
    before, _replaced = _replaced, replacements
    return before


def taken() -> dict[str, Replacement]:
    """The replacements that stand here: this thread's, or else everyone's."""
    here = _here.get()
    return _replaced if here is None else here


@contextlib.contextmanager
def taking(replacements: dict[str, Replacement]) -> Iterator[None]:
    """Within this context these do, whatever other threads do."""
    token = _here.set(replacements)
    try:
        yield
    finally:
        _here.reset(token)


def _instead(name: str, args: tuple, constants: dict[str, Any]) -> Replacement | None:
    found = taken().get(name)
    return None if found is None else found.of(args, constants)


def op(f: Callable) -> Callable:
    """Make a differentiable op of a function on arrays.

    `f(*arrays, **constants)` returns `(value, vjps)`, with one closure `g -> gradient` in `vjps` for each positional argument.
    The op takes arrays and Tensors alike: without a Tensor among its arguments it returns a plain array and tapes nothing.
    """
    own = Replacement(f)

    @wraps(f)
    def call(*args: Any, **constants: Any) -> Any:
        return _taped(f.__name__, _instead(f.__name__, args, constants) or own, args, constants)

    OPS[f.__name__] = call
    return call


def composed(f: Callable) -> Callable:
    """Make an op of a function that is written in other ops, so that it needs no closures of its own."""

    @wraps(f)
    def call(*args: Any, **constants: Any) -> Any:
        other = _instead(f.__name__, args, constants)
        return f(*args, **constants) if other is None else _taped(f.__name__, other, args, constants)

    OPS[f.__name__] = call
    COMPOSED.add(f.__name__)
    return call


def replaceable(f: Callable) -> Callable:
    """Let a function on arrays that is no op have replacements."""

    @wraps(f)
    def call(*args: Any) -> Any:
        other = _instead(f.__name__, args, {})
        return (f if other is None else other.by)(*args)

    return call


def _taped(name: str, way: Replacement, args: tuple, constants: dict[str, Any]) -> Any:
    """The value of the op of this name, with a place on the tape if an argument has one.

    A replacement may give, in place of a closure for each argument, one `(g, wanted) -> gradients` where they share work. If
    that has an attribute `again`, it is the node's.
    """
    for what in way.asks:  # (lists: a generator costs as much as a small op)
        constants[what] = tuple([ASKED[what](a) for a in args])
    value, vjps = way.by(*[a.value if type(a) is Tensor else a for a in args], **constants)
    if callable(vjps):
        parents = tuple([a.node if type(a) is Tensor else None for a in args])
        if not any(parents):
            return value
    else:  # drop the closures, and with them the activations, that nobody will ask for
        # (an argument left at its default has a closure too, hence no strict zip)
        kept = [(a.node, vjp) for a, vjp in zip(args, vjps, strict=False) if type(a) is Tensor and vjp is not None]
        if not kept:
            return value
        parents, vjps = zip(*kept, strict=True)
    node = Node(value.shape, value.dtype, parents, vjps, name)
    node.again = getattr(vjps, "again", None)
    if (made := _made.get()) is not None:
        made.append(node)
    return Tensor(value, node)


# --- back through the tape --------------------------------------------------------------------------------------------


def unbroadcast(g: Array, shape: tuple) -> Array:
    """Sum g over the axes along which an argument of `shape` was broadcast."""
    if g.ndim > len(shape):
        g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    stretched = tuple(i for i, (a, b) in enumerate(zip(g.shape, shape, strict=True)) if a != b)
    return g.sum(axis=stretched, keepdims=True) if stretched else g


def backward(root: Tensor, g: Array) -> dict[Node, Array]:
    """The gradients of `sum(g * root)` at the leaves of the tape, by node. The tape is used up."""
    nodes, seen, stack = [], set(), [root.node]
    while stack:
        node = stack.pop()
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            nodes.append(node)
            stack.extend(node.parents)
    nodes.sort(key=lambda node: node.order)
    grads: dict[Node, Array] = {root.node: g}
    owned: set[int] = set()  # nodes whose gradient array is ours to write into
    while nodes:
        node = nodes.pop()
        if not node.parents:
            continue
        g = grads.pop(node)
        if isinstance(node.vjps, Again):
            node.vjps.fill()
        if callable(node.vjps):
            parts = node.vjps(g, tuple([p is not None for p in node.parents]))
        else:
            parts = (vjp(g) for vjp in node.vjps)
        for parent, part in zip(node.parents, parts, strict=False):
            if parent is not None and part is not None:
                _accumulate(grads, owned, parent, part)
        node.vjps, node.again, node.parents = None, None, ()  # frees the activations as we go
    return grads


@replaceable
def add_at(x: Array, index: Any, g: Array) -> None:
    """x[index] += g in place; entries named twice add up."""
    xp.add.at(x, index, g)


def _accumulate(grads: dict[Node, Array], owned: set[int], node: Node, part: Array | Put | Onto) -> None:
    have = grads.get(node)
    if isinstance(part, Onto):
        grads[node] = part.onto(have, id(node) in owned)
        owned.add(id(node))
        return
    if isinstance(part, Put):
        if have is None:
            have = xp.zeros(node.shape, node.dtype)
        elif id(node) not in owned:
            have = have.copy()
        add_at(have, part.index, part.g)
        grads[node] = have
        owned.add(id(node))
        return
    if part.shape != node.shape:
        part = unbroadcast(part, node.shape)
    if part.dtype != node.dtype:
        part = part.astype(node.dtype)
    if have is None:
        grads[node] = part
    elif id(node) in owned:
        have += part
        grads[node] = have  # a sum of NumPy scalars is a new object
    else:
        grads[node] = have + part
        owned.add(id(node))


def value_and_grad(f: Callable) -> Callable:
    """`f(theta, ...) -> scalar` made into `theta, ... -> (value, gradients)`.

    `theta` is a flat dict of arrays; only its entries are differentiated. `f` may return `(scalar, anything)`; then the
    result is `((value, anything), gradients)`. Entries on which f does not depend get a gradient of zeros.
    Raises TypeError if the result is not a scalar.
    """

    @wraps(f)
    def call(theta: dict[str, Array], *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Array]]:
        leaves = {k: Tensor(v) for k, v in theta.items()}
        out = f(leaves, *args, **kwargs)
        root, rest = out if isinstance(out, tuple) else (out, None)
        if getattr(root, "shape", None) != ():
            found = f"shape {root.shape}" if hasattr(root, "shape") else f"a {type(root).__name__}"
            raise TypeError(f"value_and_grad needs a scalar array, the function returned {found}")
        grads: dict[Node, Array] = {}
        if type(root) is Tensor:
            grads = backward(root, xp.ones((), root.dtype))
            root = root.value
        slopes = {
            k: grads[leaf.node] if leaf.node in grads else xp.zeros(leaf.shape, leaf.dtype)
            for k, leaf in leaves.items()
        }
        return (root if rest is None else (root, rest)), slopes

    return call


_stop: ContextVar[Callable[[Tensor], Any]] = ContextVar("stop", default=lambda x: x.value)


def stop_gradient(x: Any) -> Any:
    """x as a constant: its value goes on, its gradient ends here."""
    return _stop.get()(x) if type(x) is Tensor else x


@contextlib.contextmanager
def stopping(by: Callable[[Tensor], Any]) -> Iterator[None]:
    """Within this context `stop_gradient` of a Tensor is what `by` makes of it."""
    token = _stop.set(by)
    try:
        yield
    finally:
        _stop.reset(token)


def gradients_flow() -> contextlib.AbstractContextManager[None]:
    """Within this context `stop_gradient` does nothing, so that a function can be compared with finite differences."""
    return stopping(lambda x: x)


def value(x: Any) -> Any:
    """The plain array of x, whether it is a Tensor or an array."""
    return x.value if type(x) is Tensor else x
