"""Errors of CorDA."""

from minipeft.conformance.mutants.pissa import residual_forgotten

__all__ = ["residual_forgotten"]
