"""Errors of P-tuning."""

from minipeft.conformance.mutants.prompt_tuning import prompt_at_the_end

__all__ = ["prompt_at_the_end"]
