"""Errors of LLaMA-Adapter."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant("forward grad")
class gate_ignored(Tensors):
    """The gate is 1."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"g": arrays["g"] * 0.0 + 1.0}
