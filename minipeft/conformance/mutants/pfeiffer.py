"""Errors of Pfeiffer's adapter."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.conformance.mutants.houlsby import residual_dropped

__all__ = ["residual_dropped"]


@mutant("forward grad")
class residual_not_read(Tensors):
    """The adapter reads the sub-layer's output, not the residual sum."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs | {"x": inputs["x"] * 0.0}, arrays
