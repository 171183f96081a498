"""Errors of C3A."""

from __future__ import annotations

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant("forward delta")
class circulants_turned_round(Tensors):
    """Every circulant block is transposed: k stands in its first column, not in its first row."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        k = arrays["k"]
        return inputs, arrays | {"k": np.roll(k[..., ::-1], 1, axis=-1)}
