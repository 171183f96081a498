"""Errors of LoftQ."""

from minipeft.conformance.mutants.qlora import base_not_quantised

__all__ = ["base_not_quantised"]

SURVIVES = {
    "LoftQ has no trained bias": ("LoRA.change: lowrank(B, A) + shift(c)",),
}
