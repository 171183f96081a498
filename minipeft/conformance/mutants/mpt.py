"""Errors of MPT."""

from __future__ import annotations

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Tensors, mutant
from minipeft.conformance.own import method_of
from minipeft.engine import ops
from minipeft.engine.tensor import value


@mutant("forward grad")
class first_task_for_all(Tensors):
    """Every row has the prompt of the first one's task."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        ids = value(inputs["task_ids"])
        return inputs | {"task_ids": np.full_like(ids, ids[0])}, arrays


@mutant("forward grad")
class scaled_beside_one(Outputs):
    """The task's matrix stands beside 1: P ⊙ (1 + U V)."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        p = method_of(case).p  # type: ignore[attr-defined]
        return dict(y=ops.concatenate(out["y"][:, :p] + arrays["P"], out["y"][:, p:], axis=1))


SURVIVES = {
    "in later passes over a cache the prompt is in it already": ("apply: P",),
}
