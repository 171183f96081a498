"""Errors of DEFT."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Tensors, mutant
from minipeft.conformance.own import method_of
from minipeft.conformance.record.variants import More
from minipeft.engine import ops
from minipeft.engine.tensor import value


@mutant("forward grad")
class deft_pivots_positive(Tensors):
    """The QR's signs are such that its triangle has a positive diagonal."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        m: Any = method_of(case)
        if m.projector == "relu":
            return inputs, arrays
        signs = np.sign(np.diag(np.linalg.qr(value(arrays["P"]))[1]))
        return inputs, arrays | dict(R=arrays["R"] * signs[:, None])


@mutant("forward grad")
class deft_relu_on_both_sides(Tensors):
    """What is put in, and what is taken out, go by max(P, 0) on either side."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        m: Any = method_of(case)
        return inputs, arrays | (dict(P=ops.relu(arrays["P"])) if m.projector == "relu" else {})


@mutant("forward grad")
class deft_scaled_removal(Outputs):
    """What is taken out is multiplied by the scale too."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        m: Any = method_of(case)
        Q, Z = m.projector_of(arrays["P"])
        return dict(y=out["y"] - (m.scale_of(arrays["P"]) - 1) * ops.linear(inputs["x"], Q @ (Z.T @ inputs["W"])))


CASES = {"unscaled": More(dict(alpha=None))}

SURVIVES = {
    "only the shape is asked for": ("forward: P (2)", "weight: P (2)"),
}
