"""Errors of OSF."""

from __future__ import annotations

import dataclasses

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, mutant
from minipeft.conformance.own import Own


@mutant("grad")
class gradient_not_projected(Own):
    """The gradients are not kept out of the frozen subspace."""

    def vjp(self, case: Case) -> Arrays:
        free = {k: np.zeros_like(case.inputs[k]) for k in ("Uh", "Vh")}
        return super().vjp(dataclasses.replace(case, inputs={**case.inputs, **free}))
