"""Errors of BitFit."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant


@mutant()
class bias_replaced(Outputs):
    """The change takes the place of the bias."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] - inputs["b"])


SURVIVES = {
    "a bias of queries, keys and values at once, which no place has": (
        "weight: ops.concatenate(delta, xp.zeros(rest, b.dtype)), never run",
    ),
}
