"""Errors of AdapterFusion."""

from __future__ import annotations

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.conformance.mutants.pfeiffer import residual_not_read
from minipeft.conformance.record.variants import More

__all__ = ["residual_not_read"]


@mutant("forward grad")
class fusion_without_values(Tensors):
    """The values of the fusion are not transformed."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"Vf": arrays["Vf"] * 0.0 + np.eye(arrays["Vf"].shape[0])}


CASES = {"output": More(dict(query="output"))}

SURVIVES = {
    "what all adapters' keys have in common leaves a softmax as it is": ("apply: kz", "mix: kz"),
}
