"""PiSSA and OLoRA in PEFT: `init_lora_weights`, which takes the factors' start out of the base when a file is loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import BEGIN, TUNER, factors_of, principal, refuse_transposed, written
from minipeft.interop.peft.spec import DECOMPOSED, Trial
from minipeft.model.arch import Arch


def _writes(m: Any, arch: Arch) -> Config:
    refuse_transposed(m.factors, arch)
    return written(m, arch, init_lora_weights=BEGIN[m.factors])


SPEC = dataclasses.replace(
    TUNER,
    reads=lambda config, arch: factors_of(config, arch, "factors"),
    writes=_writes,
    claims=lambda config: principal(config) and not config.get("use_dora"),
    trials=(
        Trial("llama", dict(r=3), inexact=DECOMPOSED),
        Trial(
            "llama",
            dict(r=3, factors="qr", rslora=True),
            dict(targets="q_proj down_proj"),
            name="olora",
            inexact=DECOMPOSED,
        ),
    ),
)
