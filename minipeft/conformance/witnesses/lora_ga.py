"""LoRA-GA: PiSSA's; the factors that are subtracted start elsewhere."""

from minipeft.conformance.witnesses.pissa import closed

__all__ = ["closed"]
