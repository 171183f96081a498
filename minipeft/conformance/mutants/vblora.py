"""Errors of VB-LoRA."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.engine import ops


@mutant("forward grad")
class vblora_smallest(Tensors):
    """The smallest logits are chosen, and weigh as the largest should."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {k: -z for k, z in arrays.items() if k.startswith("logits")}


@mutant("forward grad")
class vblora_pieces_by_rank(Tensors):
    """The pieces of B are taken rank by rank, as those of A are."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        def turned(a: Any) -> Any:
            m, n, k = a.shape
            return ops.swapaxes(ops.reshape(a, shape=(n, m, k)), a=0, b=1)

        return inputs, arrays | {k: turned(a) for k, a in arrays.items() if k in ("logits_B", "chosen_B", "shares_B")}
