"""Errors of LN tuning."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant()
class values_added(Tensors):
    """The trained values are taken for changes and added to the base's."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | dict(gamma=inputs["W"] + arrays["gamma"])
