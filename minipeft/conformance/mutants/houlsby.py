"""Errors of Houlsby's adapter."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant


@mutant("forward grad")
class residual_dropped(Outputs):
    """The output of the sub-layer is not added to that of the bottleneck."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] - inputs["a"])
