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


SURVIVES = {
    "what the base goes on with is given anew at the next rung": ("apply: h (2)",),
    "0, or so low that its exponential is 0": ("block: visibility*", "block: bias"),
    "clears what an earlier pass left; a case is one pass": ("before, never run",),
}
