"""Errors of AdaLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.conformance.mutants import Settings, mutant


@mutant()
class adalora_eps_ignored(Settings):
    """The scale is α/r, not α/(r + ε)."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(eps=0.0)
