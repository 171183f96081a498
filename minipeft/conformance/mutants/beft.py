"""Errors of BEFT."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant


@mutant("forward merge")
class beft_replaces_the_bias(Outputs):
    """β takes the place of the bias, and is not added to it."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] - inputs["b"])


@mutant("forward merge")
class beft_scales_the_output(Outputs):
    """1 + β multiplies what the linear gives, as (IA)³ does: it is not added."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        base = out["y"] - arrays["beta"]
        return dict(y=base * (1.0 + arrays["beta"]))
