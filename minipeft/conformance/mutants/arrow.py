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


SURVIVES = {
    "of what lies along a direction only the absolute value counts": (
        "*: x, other sign",
        "*: P, other sign",
        "_gates: P.T, other sign",
        "_gates: x @ P.T, other sign",
    ),
    "only the order of the values is asked for, which no positive factor changes": (
        "_gates: z",
        "_gates: value(z)",
        "_gates: -value(z)",
    ),
    "a number so low that its exponential is 0, whatever it is exactly": ("_gates: *finfo*", "_gates: low"),
    "the rate is 0 in evaluation, where the place is": ("forward: self.dropout",),
    "it is 0": ("forward: 0.0",),
}
