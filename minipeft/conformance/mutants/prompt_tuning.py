"""Errors of prompt tuning."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant
from minipeft.conformance.own import method_of
from minipeft.engine import ops


@mutant("forward grad")
class prompt_at_the_end(Outputs):
    """The prompt stands after the text."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        p = method_of(case).p  # type: ignore[attr-defined]
        return dict(y=ops.concatenate(out["y"][:, p:], out["y"][:, :p], axis=1))


SURVIVES = {
    "in the later steps of generation with a cache, which no case has": ("apply: h, never run",),
    "positions and the token that a classifier reads are no outputs of the place": (
        "apply: here.tokens, never run",
        "apply: -1, never run",
    ),
}
