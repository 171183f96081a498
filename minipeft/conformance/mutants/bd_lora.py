"""Errors of BD-LoRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.conformance.own import method_of


@mutant("forward grad", "PEFT 0.21.2 add_weighted_adapter")
class blocks_interleaved(Tensors):
    """The rows of a block-diagonal factor go round among the blocks, row by row."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        m = method_of(case)
        P, N = arrays[m.side], m.blocks  # type: ignore[attr-defined]
        order = [row for first in range(N) for row in range(first, P.shape[0], N)]
        return inputs, arrays | {m.side: P[order]}  # type: ignore[attr-defined]


SURVIVES = {
    "the identity is its own transpose": ("change: xp.eye(N, dtype=P.dtype), turned",),
}
