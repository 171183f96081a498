"""Small errors in a method's own code, made from its source: a sign, a scale, a transposition, a term left out, two arrays exchanged.

Every function that a method computes with is compiled once more, with each of its expressions passed to a `Switchboard`. That gives
each back as it is, but for the one alteration that is switched on. No source is edited, and none is written.
"""

from __future__ import annotations

import ast
import inspect
import operator
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import combinations
from typing import Any

import numpy as np

from minipeft.changes import Change, Sum
from minipeft.engine import ops
from minipeft.engine.tensor import Tensor, value
from minipeft.method import METHODS, Method

ENTRIES = ("change", "weight", "apply", "forward", "before")  # of these a method has what it computes
KNOWN = ("self", "here", "ops", "xp", "np")  # names that hold no numbers
FACTS = ("shape", "dtype", "ndim", "size")  # what is asked of an array beside its numbers
NUDGE = 1e-3

# --- alterations ------------------------------------------------------------------------------------------------------


def turned(x: Any) -> Any:
    """An array of the same shape, its matrices read column by column: of a square one, its transpose."""
    return ops.reshape(ops.swapaxes(x), shape=x.shape)


ONE: dict[str, Callable[[Any], Any]] = {  # of a value
    "other sign": lambda x: -1.0 * x,
    "times 1.001": lambda x: (1 + NUDGE) * x,
    "times 0.999": lambda x: (1 - NUDGE) * x,
    "turned": turned,
}
TWO: dict[str, Callable[..., Any]] = {  # of a sum or difference f of two
    "without {0}": lambda f, x, y: f(0.0 * x, y),
    "without {1}": lambda f, x, y: f(x, 0.0 * y),
    "the other of + and −": lambda f, x, y: x - y if f is operator.add else x + y,
}


@dataclass(frozen=True, eq=False)
class Altered(Change):
    """A change whose ΔW and Δb are altered."""

    of: Change
    how: str

    def onto(self, W: Any) -> Any:
        return W + ONE[self.how](self.of.onto(W) - W)

    def bias_over(self, b: Any, W: Any) -> Any:
        made = self.of.bias_over(b, W)
        return made if b is None or made is None or self.how == "turned" else b + ONE[self.how](made - b)


def altered(x: Any, how: str) -> Any:
    """A value after one of the alterations `ONE`."""
    structured = isinstance(x, Change) and (how == "turned" or not isinstance(x, Sum))
    return Altered(x, how) if structured else ONE[how](x)


def numeric(x: Any) -> bool:
    """Whether a value is made of numbers, and is no index, size or flag."""
    if isinstance(x, Tensor | np.ndarray):
        return value(x).dtype.kind == "f" and value(x).size > 0
    if isinstance(x, Sum):
        return bool(x.terms) or x.shift is not None
    return isinstance(x, float | np.floating | Change)


def may(x: Any, how: str) -> bool:
    """Whether an alteration is one of this value: what has no rows and columns is not turned."""
    if how != "turned" or isinstance(x, Change):
        return how != "turned" or not isinstance(x, Sum) or bool(x.terms)
    return isinstance(x, Tensor | np.ndarray) and len(x.shape) > 1 and min(x.shape[-2:]) > 1


# --- where they are switched on ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """An expression of a function: their texts, those of its two terms, and the expression that it is a part of (−1: none)."""

    function: str
    text: str
    terms: tuple[str, ...] = ()
    within: int = -1


Alteration = tuple[int, str]  # the number of a place, −1 for the arrays as they are given; and how


class Switchboard:
    """What the compiled functions ask on their way."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.on: Alteration | None = None
        self.watching = False
        self.met: dict[Alteration, None] = {}  # all that would have made a difference, as they came
        self.ran: set[int] = set()
        self.inside = False

    def one(self, place: int, x: Any) -> Any:
        """A value, altered perhaps."""
        if self.watching:
            self.ran.add(place)
            if numeric(x):
                self._meet((place, how) for how in ONE if may(x, how))
        if self.on is not None and self.on[0] == place and numeric(x) and may(x, self.on[1]):
            with np.errstate(over="ignore"):
                return altered(x, self.on[1])
        return x

    def two(self, place: int, f: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
        """A sum or difference, altered perhaps."""
        made = f(x, y)
        if numeric(made):
            if self.watching:
                self._meet((place, how) for how in TWO)
            if self.on is not None and self.on[0] == place:
                return TWO[self.on[1]](f, x, y)
        return made

    def given(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is given its arrays by name, two of one shape exchanged perhaps; not once more by what it calls."""

        @wraps(f)
        def called(*rest: Any, **arrays: Any) -> Any:
            if self.inside:
                return f(*rest, **arrays)
            held = [k for k in sorted(arrays) if isinstance(arrays[k], Tensor | np.ndarray) and numeric(arrays[k])]
            pairs = {f"{a} and {b}": (a, b) for a, b in combinations(held, 2) if arrays[a].shape == arrays[b].shape}
            if self.watching:
                self._meet((-1, how) for how in pairs)
            if self.on is not None and self.on[0] == -1 and self.on[1] in pairs:
                a, b = pairs[self.on[1]]
                arrays = arrays | {a: arrays[b], b: arrays[a]}
            self.inside = True
            try:
                return f(*rest, **arrays)
            finally:
                self.inside = False

        return called

    def _meet(self, found: Iterator[Alteration]) -> None:
        self.met |= dict.fromkeys(found)

    def named(self, it: Alteration) -> str:
        """An alteration in words."""
        if it[0] == -1:
            return f"{it[1]} exchanged"
        return f"{self.called(it[0])}, {it[1].format(*self.places[it[0]].terms)}"

    def called(self, place: int) -> str:
        """A place in words; of several of one text, which of them."""
        it = self.places[place]
        before = sum(
            (p.function, p.text, bool(p.terms)) == (it.function, it.text, bool(it.terms)) for p in self.places[:place]
        )
        return f"{it.function}: {it.text}" + (f" ({before + 1})" if before else "")

    def idle(self) -> Iterator[str]:
        """What has never been run, in words: whole functions, else the outermost expressions."""
        never = {i for i, p in enumerate(self.places) if i not in self.ran and not p.terms}
        functions = {p.function for i, p in enumerate(self.places) if i in self.ran}
        for i in sorted(never):
            if self.places[i].function in functions and self.places[i].within not in never:
                yield f"{self.called(i)}, never run"
        yield from dict.fromkeys(
            f"{self.places[i].function}, never run" for i in sorted(never) if self.places[i].function not in functions
        )


# --- compiling --------------------------------------------------------------------------------------------------------


class _Wiring(ast.NodeTransformer):
    """Passes every expression of a function that may give numbers to the switchboard."""

    def __init__(self, board: Switchboard, function: str) -> None:
        self.board, self.function, self.within = board, function, -1

    def _passed(self, node: Any) -> ast.expr:
        place = len(self.board.places)
        self.board.places.append(Place(self.function, ast.unparse(node), within=self.within))
        before, self.within = self.within, place
        made: Any = getattr(self, f"_inner_{type(node).__name__}", self.generic_visit)(node)
        self.within = before
        return ast.Call(ast.Name("_one", ast.Load()), [ast.Constant(place), made], [])

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = [self.visit(s) for s in node.body]
        return node

    def _as_it_is(self, node: Any) -> Any:
        return node

    visit_Raise = visit_Assert = visit_JoinedStr = visit_arguments = visit_AnnAssign = _as_it_is

    def visit_Compare(self, node: ast.Compare) -> Any:
        tells = all(isinstance(o, ast.Is | ast.IsNot | ast.In | ast.NotIn) for o in node.ops)
        return node if tells else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> Any:
        return node if isinstance(node.func, ast.Name) and node.func.id == "super" else self._passed(node)

    def _inner_Call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute):
            node.func.value = self.visit(node.func.value)
        node.args = [self.visit(a) for a in node.args]
        node.keywords = [self.visit(k) for k in node.keywords]
        return node

    def _inner_BinOp(self, node: ast.BinOp) -> Any:
        names = {ast.Add: "_add", ast.Sub: "_sub"}
        if type(node.op) not in names:
            return self.generic_visit(node)
        terms, place = (ast.unparse(node.left), ast.unparse(node.right)), len(self.board.places)
        self.board.places.append(Place(self.function, ast.unparse(node), terms, self.within))
        given: list[Any] = [ast.Constant(place), self.visit(node.left), self.visit(node.right)]
        return ast.Call(ast.Name(names[type(node.op)], ast.Load()), given, [])

    def _read(self, node: Any) -> Any:
        return self._passed(node) if isinstance(node.ctx, ast.Load) else self.generic_visit(node)

    visit_BinOp = visit_UnaryOp = _passed
    visit_Subscript = _read

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        return node if node.attr in FACTS else self._read(node)

    def visit_Name(self, node: ast.Name) -> Any:
        return node if node.id in KNOWN else self._read(node)

    def visit_Constant(self, node: ast.Constant) -> Any:
        return self._passed(node) if isinstance(node.value, float) else node


def line(cls: type[Method]) -> list[type[Method]]:
    """A method, and those that it is made from."""
    return [c for c in cls.__mro__ if c is cls or METHODS.get(vars(c).get("name", "")) is c]


def functions(cls: type[Method]) -> dict[tuple[Any, str], Any]:
    """{(class or module, name): what is there} of all that a method computes with in methods' files: its one function, and what that calls."""
    homes = line(cls)
    found: dict[tuple[Any, str], Any] = {}

    def seek(name: str, above: Any = None) -> None:
        later = cls.__mro__[cls.__mro__.index(above) + 1 :] if above else cls.__mro__
        home = next((c for c in later if name in vars(c)), None)
        if home in homes:
            take(home, name)

    def take(home: Any, name: str) -> None:
        f = _bare(vars(home).get(name))
        if f is None or (home, name) in found:
            return
        found[home, name] = vars(home)[name]
        module, used = sys.modules[f.__module__], _names(_tree(f))
        for other in sorted(used):
            here = vars(module).get(other)
            if inspect.isfunction(here) and here.__module__ == module.__name__:
                take(module, other)
            seek(other)
        if "super" in used:
            seek(name, above=home)

    for name in ENTRIES:
        seek(name)
    return found


def _bare(held: Any) -> Any:
    """The function in what a class or module holds, None if that is none or has no name."""
    f = held.fget if isinstance(held, property) else getattr(held, "__func__", held)
    f = inspect.unwrap(f) if callable(f) else f
    return f if inspect.isfunction(f) and f.__name__ != "<lambda>" else None


def _tree(f: Any) -> ast.FunctionDef:
    return ast.parse(textwrap.dedent(inspect.getsource(f))).body[0]  # type: ignore[return-value]


def _names(tree: ast.AST) -> set[str]:
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return names | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


def _compiled(home: Any, held: Any, label: str, board: Switchboard) -> Any:
    """A function passed to the switchboard, as it is held in its class or module."""
    f = _bare(held)
    tree = _Wiring(board, label).visit(_tree(f))
    tree.decorator_list, tree.returns = [], None
    for given in ast.walk(tree.args):
        if isinstance(given, ast.arg):
            given.annotation = None
    outer = ast.parse(
        "def outer(__class__, _one, _add, _sub):\n    pass"
    )  # what `super()` asks for, and what is put in
    outer.body[0].body = [tree, ast.Return(ast.Name(tree.name, ast.Load()))]  # type: ignore[attr-defined]
    code = compile(ast.fix_missing_locations(outer), f"<{label}>", "exec")
    made: dict[str, Any] = {}
    exec(code, vars(sys.modules[f.__module__]), made)
    sums = (lambda place, x, y, by=by: board.two(place, by, x, y) for by in (operator.add, operator.sub))
    g = made["outer"](home, board.one, *sums)
    vars(g).update(vars(f))
    g = board.given(g) if f.__name__ in ENTRIES and inspect.isclass(home) else g
    kind = next((k for k in (property, staticmethod, classmethod) if isinstance(held, k)), None)
    return kind(g) if kind else g


@contextmanager
def switchboard(cls: type[Method]) -> Iterator[Switchboard]:
    """In the block the method computes by functions that ask this switchboard."""
    board, held = Switchboard(), functions(cls)
    labels = {(home, n): n if home is cls or inspect.ismodule(home) else f"{home.__name__}.{n}" for home, n in held}
    made = {at: _compiled(at[0], f, labels[at], board) for at, f in held.items()}
    try:
        for (home, name), f in made.items():
            setattr(home, name, f)
        yield board
    finally:
        for (home, name), f in held.items():
            setattr(home, name, f)
