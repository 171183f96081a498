"""Errors of cartridges."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant
from minipeft.conformance.own import method_of
from minipeft.conformance.record.variants import More
from minipeft.engine import ops


@mutant("forward grad")
class what_stays_comes_last(Outputs):
    """The frozen keys and values stand behind the trained ones."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        method = method_of(case)
        f, p = method.frozen, method.p  # type: ignore[attr-defined]
        return {k: ops.concatenate(x[:, :, f:p], x[:, :, :f], x[:, :, p:], axis=2) for k, x in out.items()}


CASES = {"all_trained": More(dict(frozen=0)), "two_stay": More(dict(frozen=2))}
