"""Errors of X-LoRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant()
class gates_alike(Tensors):
    """All experts have one weight."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {k: arrays[k] * 0.0 for k in arrays if k[0] in "Vv"}
