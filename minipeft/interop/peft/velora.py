"""VeLoRA in PEFT: `velora_config`, and v beside LoRA's factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import TUNER, fewer, written
from minipeft.interop.peft.spec import Key, Trial
from minipeft.model.arch import Arch

INIT = {"batch": "batch_average", "once": "batch_average_once", "random": "random"}


def _reads(config: Config, arch: Arch) -> Config:
    own = config["velora_config"]
    fixed = own.get("init_type", "batch_average") != "batch_average"  # v is that of the file, however it began
    return dict(groups=own.get("num_groups", 64), factor=own.get("scale", 1.0), init="random" if fixed else "batch")


def _at_site(config: Config, arrays: Mapping[str, Any]) -> Config:
    unseen = "v" in arrays and not arrays["v"].any()  # no batch yet
    return fewer(config, arrays) | (dict(init="batch") if unseen else {})


def _writes(m: Any, arch: Arch) -> Config:
    return written(m, arch, velora_config=dict(num_groups=m.groups, scale=m.factor, init_type=INIT[m.init]))


SPEC = dataclasses.replace(
    TUNER,
    keys={
        "A": Key("lora_A.weight", size="(r, in)"),
        "B": Key("lora_B.weight", size="(out, r)"),
        "c": Key("lora_B.bias", size="(out) with `lora_bias`"),
        "v": Key("lora_velora_embed", size="(⌈in/num_groups⌉)"),
    },
    embedding_keys=None,
    reads=_reads,
    writes=_writes,
    at_site=_at_site,
    claims=lambda config: config.get("velora_config") is not None,
    trials=(
        Trial("llama", dict(r=3, alpha=5.0, groups=5), dict(targets="q_proj down_proj")),
        Trial("gpt2", dict(r=2, init="random", factor=0.5, lora_bias=True), name="gpt2"),
    ),
)
