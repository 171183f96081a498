"""Errors of Arrow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Settings, Tensors, mutant


@mutant("forward grad")
class every_expert_asked(Settings):
    """All experts count, not the largest few."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(top_k=len(m.experts))


@mutant("forward grad")
class temperature_ignored(Settings):
    """The softmax has the temperature 1."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(temperature=1.0)


@mutant("forward grad")
class directions_exchanged(Tensors):
    """The experts have each other's directions."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"P": arrays["P"][::-1]}
