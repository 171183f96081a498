"""Errors of BOFT."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Tensors, Weights, mutant
from minipeft.conformance.record.variants import More
from minipeft.engine import ops
from minipeft.methods.orthogonal.boft import gathered


@mutant("forward grad")
class boft_turned_back(Tensors):
    """Q is inverted: the Cayley transform as OFT's paper writes it."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"R": arrays["R"] * -1.0}


@mutant("forward")
class boft_scales_the_bias(Outputs):
    """s acts on the bias too."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] + (arrays["s"] - 1.0) * inputs["b"])


class Turning(Weights):
    """A mutant that turns the inputs by other factors: `order` says in which order they come, and as which each permutes."""

    def order(self, factors: int) -> list[int]:
        return list(range(factors))

    def permuted(self, to: Any) -> tuple[Any, Any]:
        """By which orders the inputs are taken before a factor's blocks, and after."""
        return np.argsort(to), to

    def change(self, case: Case, W: Any, arrays: Arrays) -> Any:  # type: ignore[override]
        R = arrays["R"]
        S, I = 0.5 * (R - ops.swapaxes(R)), np.eye(R.shape[-1], dtype=case.dtype)
        Q = ops.solve(I + S, I - S)
        for i in self.order(R.shape[0]):
            before, after = self.permuted(gathered(W.shape[1], R.shape[-1], i))
            W = ops.block_matmul(W[:, before], ops.swapaxes(Q[i]))[:, after]
        return arrays["s"][:, None] * W


@mutant("forward delta")
class boft_permuted_the_other_way(Turning):
    """The inputs are permuted by P where the inverse is meant, and by the inverse where P is."""

    def permuted(self, to: Any) -> tuple[Any, Any]:
        return to, np.argsort(to)


@mutant("forward delta")
class boft_permuted_once(Turning):
    """The inputs are not permuted back after a factor's blocks."""

    def permuted(self, to: Any) -> tuple[Any, Any]:
        return np.argsort(to), np.arange(len(to))


@mutant("forward delta")
class boft_factors_turned_round(Turning):
    """The factors come in the opposite order."""

    def order(self, factors: int) -> list[int]:
        return list(range(factors))[::-1]


CASES = {  # P of two factors is its own inverse, that of three is not
    "three_factors": More(dict(block=2, factors=3), sizes="eights"),
}

SURVIVES = {
    "blocks are dropped at random in training": ("forward, never run",),
    "the identity is its own transpose": ("weight: xp.eye*, turned", "weight: I, turned", "weight: I (2), turned"),
}
