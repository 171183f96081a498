"""Errors of training everything."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Weights, mutant
from minipeft.conformance.record.variants import More


@mutant("forward delta")
class trained_copy_added(Weights):
    """The trained weight is added to the base's, and does not take its place."""

    def change(self, case: Case, W: Any, arrays: Arrays) -> Any:  # type: ignore[override]
        return W + arrays["W1"]


@mutant("forward merge")
class trained_copy_averaged(Weights):
    """The mean of the trained weight and the base's is used."""

    def change(self, case: Case, W: Any, arrays: Arrays) -> Any:  # type: ignore[override]
        return 0.5 * (W + arrays["W1"])


CASES = {"tied": More(tied=True), "untied": More(dict(head="stays"), tied=True)}
