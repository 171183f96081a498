"""LoftQ in PEFT: `init_lora_weights`, by which the base is quantised again when a file is loaded, on an accelerator alone.

What PEFT would quantise otherwise is written as plain LoRA, for the base as it became, which must be saved beside it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from minipeft.errors import Bad
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import TUNER, began, refuse_transposed, written
from minipeft.model.arch import Arch

CODES = {4: "nf4", 8: "int8"}


def _reads(config: Config, arch: Arch) -> Config:
    refuse_transposed("loftq", arch)
    own = config["loftq_config"]
    if lost := [name for name in ("loftq_bits", "loftq_iter") if name not in (own or {})]:
        raise Bad(f"adapter_config.json: init_lora_weights='loftq' needs {lost[0]!r} in loftq_config")
    return dict(code=CODES[own["loftq_bits"]], rounds=own["loftq_iter"], reading="peft")


def _writes(m: Any, arch: Arch) -> Config:
    bits = {code: n for n, code in CODES.items()}.get(m.code)
    if (
        bits is None
        or m.reading != "peft"
        or (bits == 4 and (m.block != 64 or m.double_quant))
        or arch.family == "gpt2"
    ):
        return written(m, arch)
    return written(m, arch, init_lora_weights="loftq", loftq_config=dict(loftq_bits=bits, loftq_iter=m.rounds))


SPEC = dataclasses.replace(
    TUNER,
    reads=_reads,
    writes=_writes,
    claims=lambda config: began(config) == "loftq",
    on_layer=False,
    readings=dict(reading="peft"),
)
