"""Errors of aLoRA."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant, scale_of
from minipeft.conformance.own import method_of
from minipeft.engine import ops
from minipeft.engine.tensor import value


class Elsewhere(Outputs):
    """A mutant that acts from another token on: `start` says which, of where an invocation begins in a row, and its length."""

    def start(self, at: list[int], n: int, t: int) -> int:
        return at[-1] if at else t

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        m: Any = method_of(case)
        active = np.zeros(inputs["x"].shape[:2], bool)
        n = len(m.invocation)
        for row, ids in enumerate(value(inputs["input_ids"]).tolist()):
            at = [i for i in range(len(ids) - n + 1) if tuple(ids[i : i + n]) == m.invocation]
            active[row, self.start(at, n, len(ids)) :] = True
        y = ops.linear(inputs["x"], inputs["W"], inputs["b"])
        z = ops.add_lowrank(y, inputs["x"], arrays["A"], arrays["B"], s=scale_of(case))
        z = z + scale_of(case) * arrays["c"] if "c" in arrays else z
        return dict(y=ops.where(z, y, condition=active[:, :, None]))


@mutant("forward grad", "PEFT 0.21.2 convert_to_lora, torchao merge")
class always_active(Elsewhere):
    """Every token is adapted, invoked or not."""

    def start(self, at: list[int], n: int, t: int) -> int:
        return 0


@mutant("forward grad")
class active_after_the_invocation(Elsewhere):
    """The tokens of the invocation are the base's."""

    def start(self, at: list[int], n: int, t: int) -> int:
        return at[-1] + n if at else t


@mutant("forward grad")
class active_from_the_first_invocation(Elsewhere):
    """An earlier occurrence counts."""

    def start(self, at: list[int], n: int, t: int) -> int:
        return at[0] if at else t


SURVIVES = {
    "the rate is 0 in evaluation, where the place is": ("forward: self.dropout",),
}
