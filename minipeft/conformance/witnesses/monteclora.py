"""MonteCLoRA: LoRA's, for what is sampled in training alone is not there."""

from minipeft.conformance.witnesses.lora import closed

__all__ = ["closed"]
