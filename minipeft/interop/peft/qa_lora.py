"""QA-LoRA in PEFT: `use_qalora`, which acts on GPTQ's layers alone; A has one column for each group of inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minipeft.errors import Bad
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.keys import body_of
from minipeft.interop.peft.lora import TUNER, VARIANTS, written
from minipeft.interop.peft.names import Naming
from minipeft.interop.peft.spec import Key
from minipeft.model.arch import Arch
from minipeft.targets import sites


def _writes(m: Any, arch: Arch) -> Config:
    if m.pool != "peft":
        raise Bad(f"{m.name} cannot be written for PEFT with pool={m.pool!r}: expected 'peft', or alpha times g²/in")
    if m.group == 1:
        raise Bad(
            f"{m.name} cannot be written for PEFT with group=1: what it reads so is LoRA; expected groups of several"
        )
    return written(m, arch, use_qalora=True)


def _seen(config: Config, naming: Naming, tensors: Mapping[str, Any]) -> Config:
    """Without use_qalora where PEFT passes it over, which is on layers that are not GPTQ's: A has a column for every input there;

    and without variants where it passes over those, on GPTQ's. Groups of one input do not tell, and this base has no such layers.
    """
    if not config.get("use_qalora"):
        return config
    every, n = sites(naming.model), config["qalora_group_size"]
    for key, a in tensors.items() if n > 1 and not config.get("target_parameters") else ():
        module, end, _ = body_of(key).partition(".lora_A.")
        site = every.get(f"{naming.ours(module)}.weight") if end else None
        if site is not None and a.ndim == 2 and a.shape[1] * n == site.shape[1]:
            return config | dict.fromkeys((*VARIANTS, "arrow_config"))
    return config | dict(use_qalora=False)


SPEC = dataclasses.replace(
    TUNER,
    keys={"A": Key("lora_A.weight", size="(r, in/g)"), "B": Key("lora_B.weight", size="(out, r)")},
    embedding_keys=None,
    settings={**TUNER.settings, "group": "qalora_group_size"},
    reads=lambda config, arch: dict(pool="peft"),
    writes=_writes,
    seen=_seen,
    claims=lambda config: bool(config.get("use_qalora")),
    readings=dict(pool="peft"),
    on_layer=False,  # PEFT has it over GPTQ's layers only
)
