"""Errors of Super-Tuning."""

from __future__ import annotations

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.conformance.record.variants import More
from minipeft.engine.tensor import value


@mutant("forward grad")
class supertuning_column_by_column(Tensors):
    """The places are counted column by column."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        out, in_ = case.tensors["W"].shape
        rows, cols = value(arrays["p"]) % out, value(arrays["p"]) // out
        return inputs, arrays | dict(p=rows * in_ + cols)


@mutant("forward grad")
class supertuning_sorted_places(Tensors):
    """The places are sorted, and the values are not."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | dict(p=np.sort(value(arrays["p"])))


CASES = {"training": More(dict(r=0, dropout=0.3), training=True)}

SURVIVES = {
    "it is multiplied by 0": ("forward: base.W",),
    "it is 0": ("forward: 0 * base.W",),
}
