"""Errors of HiRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant
from minipeft.engine import ops


@mutant("forward grad")
class hira_replaces(Outputs):
    """W ∘ B A in place of W, without the 1 that keeps W."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=ops.linear(inputs["x"], inputs["W"] * (arrays["B"] @ arrays["A"]), inputs["b"]))
