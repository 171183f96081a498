"""DoRA in PEFT: `use_dora`, and a magnitude beside LoRA's factors."""

from __future__ import annotations

import dataclasses
from typing import Any

from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import (
    BEGIN,
    PATCHES,
    TUNER,
    beside_base,
    factors_of,
    principal,
    refuse_transposed,
    written,
)
from minipeft.interop.peft.spec import DECOMPOSED, Trial
from minipeft.model.arch import Arch


def _writes(m: Any, arch: Arch) -> Config:
    refuse_transposed(BEGIN[m.start], arch)
    return written(m, arch, use_dora=True, init_lora_weights=BEGIN[m.start])


SPEC = dataclasses.replace(
    TUNER,
    reads=lambda config, arch: factors_of(config, arch, "start"),
    writes=_writes,
    patches=PATCHES,
    settled=lambda config, arch: dict(patches=TUNER.patches) if principal(config) else {},
    claims=lambda config: bool(config.get("use_dora")),
    holds=beside_base,
    readings=dict(grad="detached"),
    combined=True,
    trials=(
        Trial("llama", dict(r=2), dict(targets="q_proj down_proj embed_tokens")),
        Trial("gpt2", dict(r=2), name="gpt2"),
        Trial("gpt2", dict(r=2), dict(targets="wte wpe"), name="tables"),
        Trial("vit-channels", dict(r=3), dict(targets="projection q_proj"), name="patches"),
        Trial(
            "llama",
            dict(r=2, start="svd"),
            dict(targets="q_proj down_proj embed_tokens"),
            name="pissa",
            inexact=DECOMPOSED,
        ),
        Trial("llama", dict(r=2, start="qr"), name="olora", inexact=DECOMPOSED),
    ),
)
