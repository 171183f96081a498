"""QA-LoRA in PEFT: `use_qalora`, which acts on GPTQ's layers alone; A has one column for each group of inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from minipeft.errors import Bad
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import TUNER, written
from minipeft.interop.peft.spec import Key
from minipeft.method import Site
from minipeft.model.arch import Arch


def _writes(m: Any, arch: Arch) -> Config:
    if m.pool != "peft":
        raise Bad(f"{m.name} cannot be written for PEFT with pool={m.pool!r}: expected 'peft', or alpha times g²/in")
    return written(m, arch, use_qalora=True)


def _plain(
    config: Config, every: Mapping[str, Site], own: Mapping[str, str], found: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Raises `Bad` for a file of LoRA: PEFT passes use_qalora over where a layer is not GPTQ's."""
    for site, arrays in found.items():
        if "A" in arrays and config["qalora_group_size"] > 1 and arrays["A"].shape[-1:] == every[site].shape[1:]:
            raise Bad(
                f"adapter_config.json: use_qalora: A at {own[site]} has a column for every input, so this was trained as plain "
                "LoRA, on layers that are not GPTQ's; expected false"
            )
    yield from ()


SPEC = dataclasses.replace(
    TUNER,
    keys={"A": Key("lora_A.weight", size="(r, in/g)"), "B": Key("lora_B.weight", size="(out, r)")},
    embedding_keys=None,
    settings={**TUNER.settings, "group": "qalora_group_size"},
    reads=lambda config, arch: dict(pool="peft"),
    writes=_writes,
    absent=_plain,
    claims=lambda config: bool(config.get("use_qalora")),
    readings=dict(pool="peft"),
    on_layer=False,  # PEFT has it over GPTQ's layers only
)
