"""LoRA-GA in PEFT: plain LoRA, with the factors that it began with as further directions."""

from __future__ import annotations

import dataclasses

from minipeft.interop.peft.lora import CONVERTED
from minipeft.interop.peft.spec import Trial

SPEC = dataclasses.replace(
    CONVERTED,
    unasked=lambda m: "PEFT makes this from a gradient it estimates itself",
    trials=(Trial("llama", dict(r=3)),),
)
