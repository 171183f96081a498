"""Errors of AdaLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.conformance.mutants import Settings, mutant
from minipeft.conformance.record.variants import More


@mutant()
class adalora_undivided(Settings):
    """The change is not divided by the rank."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(alpha=(m.alpha if m.alpha > 0 else m.r) * (m.r + m.eps))


@mutant()
class adalora_eps_ignored(Settings):
    """The scale is α/r, not α/(r + ε)."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(eps=0.0)


CASES = {"without_alpha": More(dict(alpha=0.0))}

SURVIVES = {
    "only whether it is positive is asked for": ("scale: self.alpha, times*",),
}
