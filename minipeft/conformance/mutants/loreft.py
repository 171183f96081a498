"""Errors of LoReFT."""

from __future__ import annotations

import numpy as np

from minipeft.conformance import places
from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant
from minipeft.conformance.own import method_of
from minipeft.engine import ops


@mutant("forward grad")
class rotation_not_subtracted(Outputs):
    """LoReFT adds Rᵀ(W h + b) and does not subtract what R sees of h."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        h, R = inputs["h"], arrays["R"]
        where = np.zeros((1, places.T, 1))
        where[:, : method_of(case).n_pre] = 1.0  # type: ignore[attr-defined]
        return dict(y=out["y"] + ops.linear(h, R) @ R * where)


SURVIVES = {
    "in the later steps of generation with a cache, which no case has": ("apply: h, never run",),
    "every row of the place has all its tokens": ("apply: n[:, None], never run",),
    "the rate is 0 in evaluation, where the place is": ("_edit: self.dropout",),
}
