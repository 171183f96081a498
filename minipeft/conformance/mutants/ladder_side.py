"""Errors of ladder side-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.conformance.mutants import Settings, mutant


@mutant()
class ladder_unheated(Settings):
    """The gate's temperature is left out."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(T=1.0)
