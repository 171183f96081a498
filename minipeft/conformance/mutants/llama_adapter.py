"""Errors of LLaMA-Adapter."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant("forward grad")
class gate_ignored(Tensors):
    """The gate is 1."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"g": arrays["g"] * 0.0 + 1.0}


SURVIVES = {
    "the other readings act at two sites, the place has one": (
        "apply: h*, never run",
        "apply: self.adds (2), never run",
        "apply: *here*, never run",
        "apply: projected, never run",
        "apply: branch (3), never run",
        "branch: self.adds, never run",
    ),
    "no place has queries, keys and values in one linear": (
        "branch: here.param*",
        "branch: ops.linear(A, W*",
        "branch: both*",
    ),
    "the model of the place has the usual scale": ("branch: arch.scale, never run",),
}
