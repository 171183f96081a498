"""Errors of LoHa."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant
from minipeft.engine import ops


@mutant("forward grad")
class loha_added(Outputs):
    """The two products are added, not multiplied."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        one, two = (arrays[f"X{i}"] @ arrays[f"Y{i}"] for i in "12")
        return dict(y=ops.linear(inputs["x"], inputs["W"] + 3.0 * (one + two), inputs["b"]))
