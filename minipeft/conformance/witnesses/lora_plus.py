"""LoRA+: LoRA's; it differs in its learning rates alone."""

from minipeft.conformance.witnesses.lora import closed

__all__ = ["closed"]
