"""Errors of LoftQ."""

from minipeft.conformance.mutants.qlora import base_not_quantised

__all__ = ["base_not_quantised"]
