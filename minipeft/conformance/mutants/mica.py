"""Errors of MiCA."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, mutant
from minipeft.conformance.own import Own
from minipeft.conformance.record.variants import More


class Other(Own):
    """A mutant that takes other columns for B: those that `chosen` picks of U."""

    def chosen(self, U: Any, r: int) -> Any:
        """r columns."""
        return U[:, -r:]

    def init(self, case: Case) -> Arrays:
        found = super().init(case)
        return found | dict(B=self.chosen(np.linalg.svd(case.tensors["W"])[0], found["B"].shape[1]))


@mutant("start")
class mica_takes_the_largest(Other):
    """B has the left singular vectors with the largest singular values."""

    def chosen(self, U: Any, r: int) -> Any:
        return U[:, :r]


@mutant("start")
class mica_leaves_out_the_last(Other):
    """B ends one vector too early."""

    def chosen(self, U: Any, r: int) -> Any:
        return U[:, -r - 1 : -1]


CASES = {"embedding": More(table=True)}
