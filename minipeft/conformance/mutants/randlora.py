"""Errors of RandLoRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.conformance.record.variants import More


@mutant("forward grad")
class randlora_sum_of_products(Tensors):
    """Each random matrix meets the rows of its own vectors, as in the paper's sum."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        B = arrays["B"]
        return inputs, arrays | {"B": B.swapaxes(1, 2).reshape(B.shape)}


CASES = {"tall": More(sizes="tall")}
