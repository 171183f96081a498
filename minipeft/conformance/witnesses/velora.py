"""VeLoRA: LoRA's; it differs in a gradient in training alone."""

from minipeft.conformance.witnesses.lora import closed

__all__ = ["closed"]
