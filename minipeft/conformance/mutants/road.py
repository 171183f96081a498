"""Errors of RoAd."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Tensors, mutant


@mutant("forward grad")
class road_turned_back(Tensors):
    """θ has the opposite sign."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"theta": arrays["theta"] * -1.0}


@mutant("forward")
class road_spares_the_bias(Outputs):
    """The bias is added after the rotation, not turned."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        m = self.method(case)
        return dict(y=out["y"] + inputs["b"] - m.change(**arrays).bias(inputs["b"]))  # type: ignore[attr-defined]
