"""Errors of GLoRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, mutant


def _path(arrays: Arrays, n: str) -> object:
    return arrays[f"{n}d"] @ arrays[f"{n}u"] if f"{n}d" in arrays else arrays.get(n, 0.0)


@mutant("forward grad")
class glora_bias_of_new_weight(Outputs):
    """C is multiplied with W' in place of W."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        A, B, C = (_path(arrays, n) for n in "ABC")
        more = (inputs["W"] * A + B) @ C if "C" in arrays or "Cd" in arrays else 0.0  # type: ignore[operator]
        return dict(y=out["y"] + (more[:, 0] if "C" in arrays or "Cd" in arrays else more))  # type: ignore[index]


@mutant("forward grad")
class glora_scales_new_bias(Outputs):
    """D scales what E shifts too."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] + (arrays["D"] * arrays["E"] if "D" in arrays else 0.0))


SURVIVES = {
    "the linear of every place has a bias": ("change: b, never run",),
    "it is 0": ("change: 0.0",),
}
