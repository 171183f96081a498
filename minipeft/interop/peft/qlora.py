"""QLoRA in PEFT: plain LoRA, on a base that bitsandbytes holds in four bits."""

from __future__ import annotations

import dataclasses

from minipeft.interop.peft.lora import TUNER
from minipeft.interop.peft.spec import never

SPEC = dataclasses.replace(
    TUNER,
    claims=never,
    on_layer=False,
)
