"""Errors of AdaMSS."""

from __future__ import annotations

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.conformance.record.variants import More


@mutant("forward grad merge")
class clusters_found_anew(Tensors):
    """Who is in which cluster is not what the file says."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"c": np.roll(arrays["c"], 1)}


@mutant("forward grad merge")
class bias_has_no_change(Tensors):
    """The last column of V, which changes the bias, is left out."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"v": arrays["v"] * 0.0}


CASES = {"asa": More(dict(asa=True, target=1, first=0, last=6, interval=2, beta1=0.6, beta2=0.7, gamma=1.5), steps=8)}
