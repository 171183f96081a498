"""Errors of TinyLoRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant("forward grad")
class tinylora_transposed(Tensors):
    """The random matrices are taken for their transposes."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"P": arrays["P"].swapaxes(1, 2)}


SURVIVES = {
    "only the shape is asked for": ("change: P (2)",),
}

ALIKE = {"a place is one site, so one group": ("v with groups = 1",)}
