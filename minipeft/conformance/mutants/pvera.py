"""Errors of PVeRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant("forward grad")
class pvera_variance_first(Tensors):
    """The mean is taken from the second half of the rows."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        r = arrays["B"].shape[1]
        other = [*range(r, 2 * r), *range(r)]
        return inputs, arrays | {k: arrays[k][other] for k in ("A", "lambda_d")}


SURVIVES = {
    "numbers are drawn anew in every training pass: nothing can be recorded": ("forward, never run",),
}
