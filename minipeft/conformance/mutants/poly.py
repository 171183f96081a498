"""Errors of Poly."""

from __future__ import annotations

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.conformance.record.variants import More
from minipeft.engine.tensor import value


@mutant("forward", "PEFT's router in training mode")
class one_task_for_all(Tensors):
    """Every row is routed as the first one's task."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        ids = value(inputs["task_ids"])
        return inputs | {"task_ids": np.full_like(ids, ids[0])}, arrays


CASES = {"unused": More(arrays=lambda a: a | {"Z": a["Z"] - 26.0})}  # no skill has a share

SURVIVES = {
    "shares are divided by their sum: two signs are none": ("_mix: *, other sign",),
    "noise is drawn in training": ("forward: *, never run",),
}
