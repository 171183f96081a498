"""Errors of Compacter."""

from __future__ import annotations

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant("forward grad")
class kronecker_turned_round(Tensors):
    """The rules are transposed, as where the factors of the Kronecker product change places."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"R": np.swapaxes(arrays["R"], 1, 2)}
