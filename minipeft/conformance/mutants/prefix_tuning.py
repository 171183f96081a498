"""Errors of prefix tuning."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant
from minipeft.conformance.own import method_of
from minipeft.conformance.record.variants import More
from minipeft.engine import ops


@mutant("forward grad")
class keys_and_values_swapped(Outputs):
    """The prefix's keys are taken as values and the other way round."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        p = method_of(case).p  # type: ignore[attr-defined]
        k, v = out["k"], out["v"]
        return dict(
            k=ops.concatenate(v[:, :, :p], k[:, :, p:], axis=2), v=ops.concatenate(k[:, :, :p], v[:, :, p:], axis=2)
        )


CASES = {"projected": More(dict(hidden=5))}

SURVIVES = {
    "the layouts differ from the second layer on, the place has one": ("apply: 2 * here.index % n, never run",),
}
