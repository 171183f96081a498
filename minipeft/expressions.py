"""Expressions as methods declare them: shapes such as "r (in + out)", conditions such as "lora_bias and not embedding".

Names stand for settings and for facts of a site. Two terms beside each other are multiplied, / is a division that rounds
down, ² and ³ are powers; the rest is Python's: comparisons, and, or, not, `x if y else z`, min, max, abs, int, round and len;
quota(part, whole, n) is of n what the part is of the whole, rounded.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Mapping
from functools import cache
from types import CodeType
from typing import Any

from minipeft.errors import Bad, near

_TOKEN = re.compile(
    r"""\s*("[^"]*"|'[^']*'|[A-Za-z_][A-Za-z0-9_]*|\d+(?:\.\d+)?(?:e-?\d+)?|[<>=!]=|//|[-−·+*/²³()<>,%])"""
)
_WORDS = {"and", "or", "not", "if", "else", "is"}  # `in` is how many inputs a weight has
_CALLS = {
    "min": min, "max": max, "int": int, "abs": abs, "len": len, "round": round,
    "quota": lambda part, whole, n: round(part / whole * n),
}  # fmt: skip
_PYTHON = {"²": "**2", "³": "**3", "−": "-", "·": "*", "/": "//"}
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.Name, ast.Constant,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip


def _tokens(expression: str) -> list[str]:
    found, at = [], 0
    while at < len(expression.rstrip()):
        token = _TOKEN.match(expression, at)
        if not token:
            raise Bad(f"cannot read the expression {expression!r} from {expression[at:].strip()!r} on")
        found.append(token[1])
        at = token.end()
    return found


def _ends_term(token: str) -> bool:
    return token not in _WORDS and (token[-1].isalnum() or token[-1] in "_)²³")


def _safe(name: str) -> str:
    """A name as Python takes it: `in` and `lambda` are words of its own."""
    return f"{name}_" if keyword.iskeyword(name) else name


def _unsafe(name: str) -> str:
    """The name that was made safe."""
    return name[:-1] if name.endswith("_") and keyword.iskeyword(name[:-1]) else name


@cache
def _compiled(expression: str) -> tuple[CodeType, tuple[str, ...]]:
    """The code of an expression, and the names that it needs."""
    out: list[str] = []
    before = ""
    for token in _tokens(expression):
        starts = token == "(" or (
            token not in _WORDS and token not in _PYTHON and (token[0].isalnum() or token[0] == "_")
        )
        if before and starts and _ends_term(before) and not (token == "(" and before in _CALLS):
            out.append("*")
        known = token in _WORDS or token in ("True", "False", "None")
        out.append(token if known else _PYTHON.get(token) or _safe(token))
        before = token
    try:
        tree = ast.parse(" ".join(out), mode="eval")
    except SyntaxError as why:
        raise Bad(f"cannot read the expression {expression!r}: {why.msg}") from None
    called = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    for node in ast.walk(tree):
        function = getattr(node, "id", "") in _CALLS
        if not isinstance(node, _NODES) or (node in called) != function:
            raise Bad(f"cannot read the expression {expression!r}: {type(node).__name__} has no place there")
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - set(_CALLS)
    return compile(tree, expression, "eval"), tuple(sorted(names))


def names(expression: str) -> set[str]:
    """The names that an expression needs."""
    return {_unsafe(n) for n in _compiled(expression)[1]}


def evaluate(expression: str, known: Mapping[str, Any]) -> Any:
    """The value of an expression. Raises `Bad` for one that cannot be read, and for a name that stands for nothing.

    >>> evaluate("r (in + out)", {"r": 2, "in": 3, "out": 4}), evaluate("start != 'zero' and r > 1", dict(start="svd", r=1))
    (14, False)
    """
    code, needed = _compiled(expression)
    values: dict[str, Any] = {}
    for name in needed:
        plain = _unsafe(name)
        try:
            values[name] = known[plain]
        except KeyError:
            raise Bad(
                f"expression {expression!r}: {plain!r} stands for nothing{near(plain, list(known))}; "
                f"known: {', '.join(sorted(known))}"
            ) from None
    try:
        return eval(code, {"__builtins__": {}, **_CALLS}, values)
    except (TypeError, ZeroDivisionError, ValueError) as why:
        raise Bad(f"cannot read the expression {expression!r}: {why}") from None


def plainly(condition: str) -> str:
    """A condition as a sentence says it: == is =, quotes stay."""
    return condition.replace("==", "=").replace("!=", "≠").replace("'", '"')
