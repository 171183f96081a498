"""Errors of PiSSA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant("forward delta", "transformers #34468; PEFT #2270")
class residual_forgotten(Tensors):
    """The starting factors are not subtracted from the base."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"A0": arrays["A0"] * 0.0}
