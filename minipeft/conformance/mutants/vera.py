"""Errors of VeRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant("forward grad")
class vera_one_vector(Tensors):
    """VeRA's second vector is left out."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"lambda_b": arrays["lambda_b"] * 0.0 + 1.0}
