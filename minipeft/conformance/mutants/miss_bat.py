"""Errors of MiSS-BAT."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Weights, mutant
from minipeft.engine import ops


class Blocks(Weights):
    """A mutant that makes something else of the blocks w of W, (O, I, r, r), and those of B, (O, 1, r, r)."""

    def block(self, w: Any, B: Any) -> Any:
        """What is added to w."""
        return w @ B + B

    def change(self, case: Case, W: Any, arrays: Arrays) -> Any:  # type: ignore[override]
        B = arrays["B"]
        (O, r, _), n = B.shape, W.shape[1]
        w = ops.transpose(ops.reshape(W, shape=(O, r, n // r, r)), axes=(0, 2, 1, 3))
        return W + ops.reshape(ops.transpose(self.block(w, B[:, None]), axes=(0, 2, 1, 3)), shape=(O * r, n))


@mutant("forward delta")
class bat_from_the_left(Blocks):
    """The blocks of W are multiplied from the left: B w in place of w B."""

    def block(self, w: Any, B: Any) -> Any:
        return B @ w + B


@mutant("forward delta")
class bat_without_the_shift(Blocks):
    """B is not added beside: w B alone."""

    def block(self, w: Any, B: Any) -> Any:
        return w @ B


@mutant("forward delta")
class bat_is_bone(Blocks):
    """B is added, and W is not multiplied by it, as in MiSS."""

    def block(self, w: Any, B: Any) -> Any:
        return B + 0.0 * w
