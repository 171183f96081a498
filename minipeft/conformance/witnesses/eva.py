"""EVA: LoRA's; it differs in where it starts."""

from minipeft.conformance.witnesses.lora import closed

__all__ = ["closed"]
