"""Errors of KaSA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant("forward grad")
class singular_values_ignored(Tensors):
    """The adapter's singular values are left out: all are 1."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"d": arrays["d"] * 0.0 + 1.0}


@mutant("forward")
class base_not_truncated(Tensors):
    """The base keeps its smallest singular values."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"B0": arrays["B0"] * 0.0}
