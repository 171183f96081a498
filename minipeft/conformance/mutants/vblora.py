"""Errors of VB-LoRA."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.conformance.record.variants import More
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


def spread(p: np.ndarray) -> np.ndarray:
    """Shares that differ from one another."""
    return np.linspace(0.1, 0.4, p.size).reshape(p.shape)


CASES = {
    "shares": More(dict(only_topk=True), lambda a: a | {k: spread(a[k]) for k in ("shares_A", "shares_B")}),
    "one": More(dict(only_topk=True, topk=1)),
}

SURVIVES = {
    "only the order of the values is asked for, which no positive factor changes": (
        "_pieces: z, times*",
        "_pieces: value(z)",
        "_pieces: -value(z)",
    ),
    "both factors are made of it: two signs are none": ("_pieces: *, other sign",),
}
