"""Errors of OFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Settings, Tensors, mutant
from minipeft.conformance.record.variants import More


@mutant()
class cayley_exact(Settings):
    """The inverse is computed exactly where a series is asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(cayley="exact")


@mutant()
class cayley_series(Settings):
    """The inverse is a series of five terms where the exact one is asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(cayley="neumann")


@mutant("forward grad")
class oft_transposed(Tensors):
    """The rotation is transposed: R in place of its inverse."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"Q": arrays["Q"] * -1.0}


CASES = {
    "within": More(dict(coft=True, eps=9.0)),  # rotations within their ball
    "embedding": More(table=True),
    "tied": More(tied=True),
    "coft": More(dict(coft=True), steps=3),
}

SURVIVES = {
    "a norm has no sign": ("_project: Q, other sign",),
}
