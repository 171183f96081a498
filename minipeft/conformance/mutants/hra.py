"""Errors of HRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Settings, Tensors, mutant
from minipeft.conformance.record.variants import More


@mutant("forward grad")
class hra_turned_round(Tensors):
    """The reflections come in the opposite order: H is transposed."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"u": arrays["u"][:, ::-1]}


@mutant("forward grad")
class hra_not_orthonormal(Settings):
    """Columns are not made orthogonal to each other where that is asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(gram_schmidt=False)


CASES = {"lam": More(dict(lam=0.5), steps=3)}

SURVIVES = {
    "a reflection is that of its hyperplane: the vector has no length and no sign": (
        "change: u",
        "vectors: u*",
        "vectors: w*",
        "vectors: ops.norm(w), other sign",
    ),
    "there are four reflections: four signs are none": ("change: H - 2 * (H @ v) @ v.T, other sign",),
    "the identity is its own transpose": ("change: xp.eye*, turned",),
}
