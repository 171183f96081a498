"""Errors of FRoD."""

from __future__ import annotations

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant("forward grad merge")
class places_transposed(Tensors):
    """S is transposed."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"rows": arrays["cols"], "cols": arrays["rows"]}


@mutant("forward grad merge", "PEFT's frod_U, made anew in loading")
class another_basis(Tensors):
    """U is not that of this V, but of one with some directions turned round."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"U": arrays["U"] * (-1.0) ** np.arange(arrays["U"].shape[1])}
