"""Errors of ShadowPEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Settings, Tensors, mutant


@mutant()
class shadow_stands(Tensors):
    """The state is not moved on behind a layer."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {k: a - 1e6 if k.endswith("_g2") else a for k, a in arrays.items()}


@mutant()
class shadow_gate_turned(Tensors):
    """The gate weighs the old state, and what it leaves the new one."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {k: -a if k.endswith(("_g2", "_G2")) else a for k, a in arrays.items()}


@mutant()
class shadow_pushes(Settings):
    """The correction is of s − h."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(alpha=-m.alpha)


SURVIVES = {
    "the rate is 0 in evaluation, where the place is": ("corrected: self.dropout",),
    "clears what an earlier pass left; a case is one pass": ("before, never run",),
}
