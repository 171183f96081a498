"""Errors of trainable tokens."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant
from minipeft.conformance.record.variants import More
from minipeft.engine import ops


@mutant()
class added_not_replaced(Outputs):
    """Rows of the base are added to those that replace them."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] + ops.take(inputs["W"], ids=inputs["ids"]) * 0.5)


CASES = {"tied": More(tied=True)}
