"""Errors of (IA)³."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant
from minipeft.conformance.own import Own


@mutant("forward grad")
class ia3_bias_unscaled(Outputs):
    """(IA)³ scales the product, but not the bias."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] + (1.0 - arrays["l"]) * inputs["b"])


@mutant("unmerge", "PEFT 0.21.2 IA3Layer.unmerge")
class unmerge_guarded(Own):
    """Unmerging divides by the vector plus a small constant."""

    def unmerge(self, case: Case) -> Arrays:
        l = case.tensors["l"]
        merged = self.merge(case)
        return dict(W=merged["W"] / (l[:, None] + 1e-8), b=merged["b"] / (l + 1e-8))
