"""Errors of QLoRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, mutant, scale_of
from minipeft.conformance.own import Own
from minipeft.engine import ops


@mutant()
class base_not_quantised(Own):
    """The base is used as it was before it was quantised."""

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        own = {k: v for k, v in arrays.items() if k != "c"}
        y = ops.add_lowrank(
            ops.linear(inputs["x"], inputs["W"], inputs["b"]), inputs["x"], own["A"], own["B"], s=scale_of(case)
        )
        return dict(y=y if "c" not in arrays else y + scale_of(case) * arrays["c"])
