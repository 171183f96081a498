"""Errors of PSOFT."""

from __future__ import annotations

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.conformance.record.variants import More


@mutant("forward grad")
class psoft_turned_back(Tensors):
    """The turn is that of OFT's exact form, the inverse; a free matrix is transposed."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | (dict(O=arrays["O"].T) if "O" in arrays else dict(q=-arrays["q"]))


@mutant("forward grad", "PEFT's files lack the singular vectors")
class psoft_other_sign(Tensors):
    """One pair of singular vectors has the other sign."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        sign = np.ones(arrays["A"].shape[0])
        sign[1] = -1.0
        return inputs, arrays | dict(A=arrays["A"] * sign[:, None], B=arrays["B"] * sign)


@mutant("forward grad")
class psoft_scales_swapped(Tensors):
    """α and β stand on each other's side."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        both = {"alpha", "beta"} <= arrays.keys()
        return inputs, arrays | (dict(alpha=arrays["beta"], beta=arrays["alpha"]) if both else {})


CASES = {"within": More(dict(eps=0.3), lambda a: a | {"q": 0.1 * a["q"]})}  # a matrix within its ball

SURVIVES = {
    "a norm has no sign, and no transposition": ("turn: Q (3)",),
    "it is far below the rounding of what it is added to": ("turn: 1e-12",),
    "the identity is its own transpose": ("change: xp.eye*, turned",),
}
