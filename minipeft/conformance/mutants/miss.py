"""Errors of MiSS."""

from __future__ import annotations

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant
from minipeft.engine import ops


@mutant("forward grad")
class miss_side_by_side(Outputs):
    """The inputs of a shard lie side by side, not r apart."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        W, D = inputs["W"], arrays["D"]
        o, i = np.ogrid[: W.shape[0], : W.shape[1]]
        shard = np.minimum(i // -(-W.shape[1] // D.shape[0]), D.shape[0] - 1)
        return dict(y=ops.linear(inputs["x"], W + D[shard, o % D.shape[1]], inputs["b"]))
