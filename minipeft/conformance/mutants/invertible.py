"""Errors of invertible adapters."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant
from minipeft.conformance.record.variants import More


@mutant("forward grad", "adapter-hub heads without the inverse")
class never_turned_back(Outputs):
    """The coupling is not undone before the head."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return out | {"z": inputs["u"] * 1.0}


CASES = {"wider": More(dict(reduction=2.0))}
