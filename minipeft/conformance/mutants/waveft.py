"""Errors of WaveFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Settings, Tensors, mutant
from minipeft.engine.tensor import value
from minipeft.engine.wavelets import synthesis


@mutant()
class waveft_other_wavelet(Settings):
    """The wavelet is Haar's, whatever is asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(wavelet="db1")


@mutant()
class waveft_quarters_swapped(Tensors):
    """Details along the outputs and along the inputs change places."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        m, (out, in_) = case.config, inputs["W"].shape
        rows, cols = (np.array(value(arrays[n])) for n in ("rows", "cols"))
        P, Q = (synthesis(n, m["wavelet"], np.dtype(float)).shape[1] for n in (out, in_))
        i, j = rows + (P - out) // 2, cols + (Q - in_) // 2
        turn = 1 * (j >= Q // 2) - (i >= P // 2)
        i, j = i + turn * (P // 2) - (P - out) // 2, j - turn * (Q // 2) - (Q - in_) // 2
        inside = (i >= 0) & (i < out) & (j >= 0) & (j < in_)
        return inputs, arrays | dict(rows=np.where(inside, i, rows), cols=np.where(inside, j, cols))


SURVIVES = {
    "only the shape is asked for": ("weight: F (2)", "weight: F (4)"),
    "it stands on both sides: two signs are none": ("weight: synthesis*, other sign",),
    "it is 0": ("middle: xp.zeros*",),
}
