"""Errors of DeLoRA."""

from __future__ import annotations

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Tensors, mutant
from minipeft.conformance.record.variants import More
from minipeft.engine import ops
from minipeft.engine.tensor import value


@mutant("grad")
class delora_norms_detached(Outputs):
    """Norms of A's rows and B's columns are held constant in the gradient."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        A, B = arrays["A"], arrays["B"]
        a, b = np.sqrt((value(A) ** 2).sum(axis=1)), np.sqrt((value(B) ** 2).sum(axis=0))
        D = (B * (arrays["lam"] / (case.config["r"] * a * b))) @ (A * arrays["n"])
        return dict(y=ops.linear(inputs["x"], inputs["W"] + D, inputs["b"]))


@mutant("forward")
class delora_not_divided(Tensors):
    """λ is not divided by r."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"lam": arrays["lam"] * float(case.config["r"])}


CASES = {"short": More(arrays=lambda a: a | {"A": 1e-5 * a["A"]})}  # rows below the least norm

SURVIVES = {
    "a norm has no sign": ("change: A, other sign", "change: B, other sign", "change: x, other sign"),
    "two norms are multiplied: two signs are none": ("change: ops.maximum(ops.norm(x, axis=axis), least), other sign",),
}
