"""Errors of GraLoRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.engine import ops


@mutant("forward grad")
class gralora_ranks_swapped(Tensors):
    """Columns of A_i are those of input block i, not of the output's block."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        k, A = case.config["k"], arrays["A"]
        q = A.shape[2] // k
        rolled = [ops.concatenate(A[i : i + 1, :, i * q :], A[i : i + 1, :, : i * q], axis=2) for i in range(k)]
        return inputs, arrays | {"A": ops.concatenate(*rolled, axis=0)}
