"""LoftQ in PEFT: plain LoRA on the base as it was quantised, which must be saved beside it: from the other base PEFT makes another.

Its own `init_lora_weights="loftq"` quantises the base again when a file is loaded, on an accelerator alone.
"""

from __future__ import annotations

import dataclasses

from minipeft.interop.peft.lora import TUNER
from minipeft.interop.peft.spec import never

SPEC = dataclasses.replace(
    TUNER,
    claims=never,
    on_layer=False,
    readings=dict(reading="peft"),
)
