"""One expression of the reference's text written otherwise: another axis, a function left out, the other factor, a wrong name.

The functions are those that run for a case: the method's own, and of what methods are made of. Each is compiled anew with one
expression replaced, and has that code for as long as it is asked. No source is edited, and none is written.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants.altering import line
from minipeft.conformance.mutants.supposing import Supposed
from minipeft.conformance.own import Own
from minipeft.engine import ops
from minipeft.engine.tensor import stop_gradient
from minipeft.method import METHODS

BESIDE = {  # what methods are made of, and how they are used: of some files a few functions alone
    "minipeft.changes": (), "minipeft.matrices": (), "minipeft.train.optimisers": ("step", "adamw", "clipped", "global_norm"),
    "minipeft.interop.peft.layer": ("load_layer",), "minipeft.model.tokens": ("insert", "position_ids", "visibility"),
    "minipeft.model.ends": ("loss_of",), "minipeft.model.generate": ("carried",),
    "minipeft.conformance.own": ("merge", "delta", "unmerge", "combine", "trained"),
}  # fmt: skip
HELP = "_supposed"  # what rewritten text asks for beside its own names
LAST = ("softmax", "log_softmax", "layer_norm", "rms_norm")  # functions along the last axis
CURVES = ("relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
WAVES = ("sin", "cos")
LONGEST = 90  # letters of an expression that is told
Written = tuple[int, ast.expr, str]  # how far-fetched, the new expression, and in words


# --- the functions ----------------------------------------------------------------------------------------------------


def _held(module: Any) -> Iterator[FunctionType]:
    """A module's own functions, and those of its classes."""
    for names in [vars(module), *(vars(c) for c in vars(module).values() if isinstance(c, type))]:
        for it in list(names.values()):
            f: Any = it.fget if isinstance(it, property) else getattr(it, "__func__", it)
            f = inspect.unwrap(f) if callable(f) else f
            written = isinstance(f, FunctionType) and f.__code__.co_filename == module.__file__  # no dataclass's
            if written and f.__name__ != "<lambda>":
                yield f


def run_for(case: Case) -> list[tuple[FunctionType, bool]]:
    """The functions of methods' files, and of those beside, that compute what a case asks for; and whether a method's file has them."""
    methods = [c.__module__ for c in line(METHODS[case.method])]
    known: dict[CodeType, tuple[FunctionType, bool]] = {}
    for name in dict.fromkeys([*methods, *BESIDE]):
        for f in _held(importlib.import_module(name)):
            if name in methods or not BESIDE[name] or f.__name__ in BESIDE[name]:
                known[f.__code__] = f, name in methods
    met: dict[CodeType, None] = {}
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: met.setdefault(frame.f_code) if event == "call" else None)
    try:
        getattr(Own(), case.ask)(case)
    except Exception:
        return []
    finally:
        sys.setprofile(before)
    return [f for code, f in known.items() if code in met]


# --- what may be written otherwise ------------------------------------------------------------------------------------


def _call(name: str, *given: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(ast.Name(HELP, ast.Load()), name, ast.Load()), list(given), [])


def _const(number: float) -> ast.expr:
    return ast.Constant(number)


def _text(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _of_call(node: ast.Call) -> Iterator[tuple[int, ast.expr]]:
    """Another axis, another function, the function left out, its arguments exchanged."""
    for i, k in enumerate(node.keywords):

        def with_axis(value: ast.expr, i: int = i, k: ast.keyword = k) -> ast.expr:
            return ast.Call(
                node.func, node.args, [*node.keywords[:i], ast.keyword(k.arg, value), *node.keywords[i + 1 :]]
            )

        if k.arg == "axis":
            if isinstance(k.value, ast.IfExp):
                yield 0, with_axis(ast.IfExp(k.value.test, k.value.orelse, k.value.body))
            try:
                old = ast.literal_eval(k.value)
            except ValueError:
                old = None
            for axis in (0, 1, -1, -2, 2):
                if axis != old:
                    yield 0, with_axis(ast.UnaryOp(ast.USub(), _const(-axis)) if axis < 0 else _const(axis))
            if not any(k.arg == "keepdims" for k in node.keywords):  # an axis that stays, and broadcasts
                for axis in (0, 1):
                    kept = with_axis(_const(axis))
                    kept.keywords.append(ast.keyword("keepdims", _const(True)))  # type: ignore[attr-defined]
                    yield 1, kept
        elif (
            isinstance(k.value, ast.Constant) and isinstance(k.value.value, int) and not isinstance(k.value.value, bool)
        ):
            yield 2, with_axis(_const(k.value.value + 1))
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name in LAST and node.args:
        yield 0, _call("across", node.func, *node.args)
    curve = name in CURVES or (isinstance(node.func, ast.Subscript) and len(node.args) == 1)
    for others in (CURVES if curve else (), WAVES if name in WAVES else ()):
        for other in others:
            if other != name:
                yield 1, ast.Call(ast.Attribute(ast.Name("ops", ast.Load()), other, ast.Load()), node.args, [])
    for i, given in enumerate(node.args):
        if not isinstance(given, ast.Starred):
            yield 0 if i == 0 else 2, given
    if len(node.args) == 2:
        yield 1, ast.Call(node.func, node.args[::-1], node.keywords)


def _of_sum(node: ast.BinOp) -> Iterator[tuple[int, ast.expr]]:
    """Another operator, one of the two left out, the other way round, one moved into the function beside it."""
    for side in (node.left, node.right):
        yield 0, side
    others: dict[type, tuple[type[ast.operator], ...]] = {
        ast.Mult: (ast.Div, ast.Add, ast.MatMult), ast.Div: (ast.Mult,), ast.Add: (ast.Sub, ast.Mult), ast.Sub: (ast.Add,),
        ast.MatMult: (ast.Mult,), ast.FloorDiv: (ast.Div,),
    }  # fmt: skip
    for other in others.get(type(node.op), ()):
        yield 0, ast.BinOp(node.left, other(), node.right)
    if not isinstance(node.op, ast.Add | ast.Mult):
        yield 1, ast.BinOp(node.right, node.op, node.left)
    if isinstance(node.op, ast.Pow):
        for power in (1, 2, 3, 0.5):
            yield 1, ast.BinOp(node.left, ast.Pow(), _const(power))
    if isinstance(node.left, ast.Call) and len(node.left.args) == 1:
        inside = ast.BinOp(node.left.args[0], node.op, node.right)
        yield 1, ast.Call(node.left.func, [inside], node.left.keywords)


def _of_any(node: ast.expr) -> Iterator[Written]:
    """Whatever it is: held constant, squared, its root, transposed, turned round, one more or less."""
    text = _text(node)
    yield 2, _call("still", node), f"no gradient goes through {text}"
    yield 2, _call("swap", node), f"{text} is transposed"
    yield 2, ast.BinOp(node, ast.Mult(), node), f"{text} is squared"
    yield 2, ast.UnaryOp(ast.USub(), node), f"{text} has the other sign"
    yield 3, _call("root", node), f"{text} is under a root"
    yield 3, _call("back", node), f"{text} is in the opposite order"
    yield 3, _call("turned", node), f"{text} is read column by column"
    yield 3, _call("one", node), f"{text} is taken to be 1"
    for by, words in ((1, "and 1"), (-1, "less 1")):
        yield 3, ast.BinOp(node, ast.Add(), _const(by)), f"{text} {words}"


def written(node: ast.expr, names: list[ast.expr]) -> Iterator[Written]:
    """What may stand in place of an expression; `names` are others that the function has."""

    def told(found: Iterator[tuple[int, ast.expr]]) -> Iterator[Written]:
        for rank, new in found:
            shown = "along the axis before the last" if _is_across(new) else f"{_text(new)} in place of"
            yield rank, new, f"{_text(node)} {shown}" if _is_across(new) else f"{shown} {_text(node)}"

    if isinstance(node, ast.Call):
        yield from told(_of_call(node))
    elif isinstance(node, ast.BinOp):
        yield from told(_of_sum(node))
    elif isinstance(node, ast.UnaryOp):
        yield from told(iter([(0, node.operand)]))
    elif isinstance(node, ast.IfExp):
        yield from told(iter([(1, node.body), (1, node.orelse)]))
    elif isinstance(node, ast.Subscript):
        yield from told(iter([(2, node.value)]))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool):
        yield from told(iter([(1, _const(node.value + by)) for by in (1, -1)]))
    elif isinstance(node, ast.Name | ast.Attribute):
        yield from told((3, other) for other in names if ast.unparse(other) != ast.unparse(node))
    if not isinstance(node, ast.Constant | ast.Tuple | ast.List | ast.Slice):
        yield from _of_any(node)


def _is_across(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "across"


# --- compiling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """Where an expression stands: as a field of a node, or one of a list there."""

    parent: ast.AST
    field: str
    index: int | None

    def put(self, node: Any) -> Any:
        """Another in its place; the one that stood there is given back."""
        if self.index is None:
            old = getattr(self.parent, self.field)
            setattr(self.parent, self.field, node)
            return old
        some = getattr(self.parent, self.field)
        old, some[self.index] = some[self.index], node
        return old


def _spots(node: ast.AST) -> Iterator[tuple[Spot, ast.AST]]:
    for field, held in ast.iter_fields(node):
        if field in ("decorator_list", "returns", "annotation", "args") and isinstance(
            node, ast.FunctionDef | ast.arg | ast.AnnAssign
        ):
            continue
        for index, child in enumerate(held) if isinstance(held, list) else [(None, held)]:
            if isinstance(child, ast.Raise | ast.JoinedStr | ast.Assert):
                continue
            if isinstance(child, ast.AST):
                yield Spot(node, field, index), child
                yield from _spots(child)


def _code(f: FunctionType, tree: ast.FunctionDef) -> CodeType | None:
    outer: Any = ast.parse("def outer(__class__):\n    pass")
    outer.body[0].body = [tree]
    try:
        code = compile(ast.fix_missing_locations(outer), f"<{f.__name__}>", "exec")
    except (SyntaxError, ValueError, TypeError):
        return None
    inner = next(c for c in code.co_consts if isinstance(c, CodeType))
    made = next(c for c in inner.co_consts if isinstance(c, CodeType) and c.co_name == f.__name__)
    return made if made.co_freevars == f.__code__.co_freevars else None


@contextmanager
def _having(f: FunctionType, code: CodeType | None, number: float) -> Iterator[None]:
    if code is None:
        raise SyntaxError(f.__name__)
    before = f.__code__
    f.__globals__[HELP] = SimpleNamespace(
        number=number, still=stop_gradient, swap=ops.swapaxes, root=ops.sqrt, back=lambda x: x[::-1], one=lambda x: 0.0 * x + 1.0,
        turned=lambda x: ops.reshape(ops.swapaxes(x), shape=x.shape), ops=ops, np=np,
        across=lambda f, x, *rest: ops.swapaxes(f(ops.swapaxes(x), *rest)),
    )  # fmt: skip
    f.__code__ = code
    try:
        yield
    finally:
        f.__code__ = before
        del f.__globals__[HELP]


def rewritten(case: Case) -> Iterator[tuple[int, Supposed]]:
    """Every mistake of this kind in the text that computes a case, the nearest first, and those with an open number last."""
    found: list[tuple[int, Supposed]] = []
    for f, own in run_for(case):
        tree: Any = ast.parse(textwrap.dedent(inspect.getsource(f))).body[0]
        tree.decorator_list, tree.returns = [], None
        for given in ast.walk(tree.args):
            if isinstance(given, ast.arg):
                given.annotation = None
        spots = [
            (s, n)
            for s, n in _spots(tree)
            if isinstance(n, ast.expr) and isinstance(getattr(n, "ctx", ast.Load()), ast.Load)
        ]
        names: list[ast.expr] = list(
            {ast.unparse(n): n for _, n in spots if isinstance(n, ast.Name | ast.Attribute)}.values()
        )
        names += [ast.Name(a.arg, ast.Load()) for a in [*tree.args.args, *tree.args.kwonlyargs]]
        for spot, node in spots:
            if (
                isinstance(spot.parent, ast.Call)
                and spot.field == "func"
                and not isinstance(node, ast.Attribute | ast.Name)
            ):
                continue
            for rank, new, words in written(node, names if own else []):
                if own or rank < 3:
                    _add(found, rank, f, tree, spot, new, f"{words}, in {f.__name__}")
            number: ast.expr = ast.Attribute(ast.Name(HELP, ast.Load()), "number", ast.Load())
            if own and not isinstance(node, ast.Constant | ast.Tuple):
                open_ones = (
                    (ast.Mult(), "{{}} times {}, in {}", 1.0, 1.5),
                    (ast.Add(), "{{}} added to {}, in {}", 0.0, 1e-3),
                )
                for op, said, neutral, near in open_ones:
                    told = said.format(_text(node).replace("{", "{{").replace("}", "}}"), f.__name__)
                    _add(found, 9, f, tree, spot, ast.BinOp(number, op, node), told, neutral, near)
        for spot, stmt in _spots(tree):
            if isinstance(stmt, ast.For):
                back = ast.Call(ast.Name("reversed", ast.Load()), [_call_list(stmt.iter)], [])
                told = f"{_text(stmt.iter)} in the opposite order, in {f.__name__}"
                _add(found, 1, f, tree, Spot(stmt, "iter", None), back, told)
            elif isinstance(stmt, ast.Assign | ast.AugAssign | ast.Expr) and spot.index is not None:
                _add(found, 2, f, tree, spot, ast.Pass(), f"without {_text(stmt)}, in {f.__name__}")
            elif isinstance(stmt, ast.If) and spot.index is not None and not stmt.orelse:
                _add(
                    found, 2, f, tree, spot, ast.Pass(), f"without what is done if {_text(stmt.test)}, in {f.__name__}"
                )
    yield from sorted(found, key=lambda pair: pair[0])


def _call_list(node: ast.expr) -> ast.expr:
    return ast.Call(ast.Name("list", ast.Load()), [node], [])


def _add(
    found: list[tuple[int, Supposed]], rank: int, f: FunctionType, tree: ast.FunctionDef, spot: Spot, new: ast.AST, words: str,
    neutral: float | None = None, near: float = 1.5,
) -> None:  # fmt: skip
    @cache
    def code() -> CodeType | None:
        old = spot.put(copy.deepcopy(new))
        try:
            return _code(f, tree)
        finally:
            spot.put(old)

    around: Callable[[float], Any] = lambda number: _having(f, code(), number)
    found.append((rank, Supposed(words, lambda number: Own(), neutral, near, around)))
