"""Errors of QA-LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Settings, mutant, scale_of
from minipeft.conformance.own import method_of
from minipeft.engine import ops


@mutant("forward grad", "PEFT 0.21.2")
class times_the_groups(Settings):
    """The mean of a group is multiplied by the number of groups where its size is asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(pool="peft")


@mutant("forward grad")
class groups_strided(Outputs):
    """A group has every (in/g)-th input, not g neighbours."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        m: Any = method_of(case)
        x, L = inputs["x"], arrays["A"].shape[1]
        sums = ops.sum(ops.reshape(x, shape=(*x.shape[:-1], m.group, L)), axis=-2)
        c = scale_of(case) * (1.0 if m.pool == "sum" else L / m.group)
        y = ops.linear(x, inputs["W"], inputs["b"])
        return dict(y=ops.add_lowrank(y, sums, arrays["A"], arrays["B"], s=c))


ALIKE = {
    "the inputs of a group have one column": (
        "delta: delta columns moved by one within blocks",
        "delta: delta columns conjugated within blocks",
        "delta: delta columns reversed within blocks",
    ),
}
