"""Errors of LoKr."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant, scale_of
from minipeft.engine import ops


@mutant("forward grad")
class lokr_swapped(Outputs):
    """The factors are swapped: D ⊗ C in place of C ⊗ D."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        C = arrays["C"] if "C" in arrays else arrays["P"] @ arrays["Q"]
        D = arrays["D"] if "D" in arrays else arrays["B"] @ arrays["A"]
        product = ops.reshape(D[:, None, :, None] * C[None, :, None, :], shape=inputs["W"].shape)
        return dict(y=ops.linear(inputs["x"], inputs["W"] + scale_of(case) * product, inputs["b"]))
