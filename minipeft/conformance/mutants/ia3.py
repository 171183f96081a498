"""Errors of (IA)³."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Weights, mutant
from minipeft.conformance.own import Own
from minipeft.conformance.record.variants import More
from minipeft.engine import ops


@mutant("forward grad")
class ia3_bias_unscaled(Outputs):
    """(IA)³ scales the product, but not the bias."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] + (1.0 - arrays["l"]) * inputs["b"]) if "l" in arrays else out


@mutant("forward grad delta")
class ia3_on_the_other_side(Weights):
    """What is to scale the input scales the output: the numbers that there are, over and over."""

    def change(self, case: Case, W: Any, arrays: Arrays) -> Any:  # type: ignore[override]
        if "l_ff" not in arrays:
            return W * arrays["l"][:, None]
        l = arrays["l_ff"]
        return W * l[np.arange(W.shape[0]) % l.shape[0]][:, None]


@mutant("forward grad")
class ia3_scales_the_input_s_bias(Outputs):
    """The bias is scaled too where the input is: by the mean of its scales."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] + (ops.mean(arrays["l_ff"]) - 1.0) * inputs["b"]) if "l_ff" in arrays else out


@mutant("unmerge", "PEFT 0.21.2 IA3Layer.unmerge")
class unmerge_guarded(Own):
    """Unmerging divides by the vector plus a small constant."""

    def unmerge(self, case: Case) -> Arrays:
        merged, t = self.merge(case), case.tensors
        if "l_ff" in t:
            return dict(W=merged["W"] / (t["l_ff"] + 1e-8), b=merged["b"])
        l = t["l"]
        return dict(W=merged["W"] / (l[:, None] + 1e-8), b=merged["b"] / (l + 1e-8))


CASES = {"on_input": More(place="feedforward")}
