"""CorDA in PEFT: plain LoRA, with the factors that it began with as further directions."""

from __future__ import annotations

import dataclasses

from minipeft.interop.peft.lora import CONVERTED
from minipeft.interop.peft.spec import Trial

SPEC = dataclasses.replace(
    CONVERTED,
    readings=dict(inputs="scaled"),
    unasked=lambda m: "PEFT makes this from inputs that it measures itself",
    trials=(
        Trial("llama", dict(r=3), dict(targets="q_proj down_proj")),
        Trial("gpt2", dict(r=2, mode="kpm", rslora=True), name="kpm"),
    ),
)
