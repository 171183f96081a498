"""QLoRA: LoRA's over the quantised weight, whose numbers have witnesses of their own."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.acting import held
from minipeft.conformance.witnesses import Tensors, lora


def closed(m: Any, t: Tensors) -> Tensors:
    return lora.closed(m, t | {"W": held(m, t["W"])})
