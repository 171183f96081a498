"""Errors of the parallel adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.conformance.mutants import Settings, mutant
from minipeft.conformance.mutants.houlsby import residual_dropped

__all__ = ["residual_dropped"]


@mutant()
class parallel_unscaled(Settings):
    """The parallel branch is added without its scale."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(s=1.0)


@mutant("forward grad")
class wrong_input_read(Settings):
    """The parallel adapter reads the other one of residual stream and sub-layer input."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(reads="residual" if m.reads == "input" else "input")
