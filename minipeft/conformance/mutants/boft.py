"""Errors of BOFT."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Tensors, mutant


@mutant("forward grad")
class boft_turned_back(Tensors):
    """Q is inverted: the Cayley transform as OFT's paper writes it."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"R": arrays["R"] * -1.0}


@mutant("forward")
class boft_scales_the_bias(Outputs):
    """s acts on the bias too."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] + (arrays["s"] - 1.0) * inputs["b"])


SURVIVES = {
    "blocks are dropped at random in training": ("forward, never run",),
    "the identity is its own transpose": ("weight: xp.eye*, turned", "weight: I, turned", "weight: I (2), turned"),
}
