"""Errors of SHiRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Settings, mutant
from minipeft.engine import ops
from minipeft.engine.tensor import value


@mutant()
class shira_unscaled(Settings):
    """The sparse values are added without their scale."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(scale=1.0)


@mutant()
class replaced_not_added(Outputs):
    """The values replace those of the base, and are not added to them."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        W = np.array(value(inputs["W"]))
        here = (value(arrays["rows"]), value(arrays["cols"]))
        gone = np.zeros_like(W)
        gone[here] = W[here]
        return dict(y=out["y"] - ops.linear(inputs["x"], gone))


ALIKE = {"the change is at few places, and 0 elsewhere": ("delta: a block of the other sign",)}
