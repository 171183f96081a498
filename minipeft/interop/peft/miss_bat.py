"""MiSS-BAT in PEFT: MiSS with init_weights="bat"."""

from __future__ import annotations

import dataclasses

from minipeft.interop.peft.fields import RATE, optional, plain
from minipeft.interop.peft.miss import SPEC as MISS
from minipeft.interop.peft.spec import Key, Trial

SPEC = dataclasses.replace(
    MISS,
    known={**MISS.known, "miss_dropout": plain("PEFT has none with init_weights='bat'", 0.0, optional(RATE))},
    keys={"B": Key("miss_block", size="(out/r, r, r)")},
    settings=dict(r="r"),
    reads=lambda config, arch: {},
    writes=lambda m, arch: dict(init_weights="bat"),
    claims=lambda config: config.get("init_weights") == "bat",
    wide=("peft.tuners.miss.layer",),
    trials=(Trial("llama", dict(r=4)),),
)
