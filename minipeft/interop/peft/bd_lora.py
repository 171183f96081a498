"""BD-LoRA in PEFT: `use_bdlora`, which says by parts of their names which modules have which factor in blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minipeft.adapted import Adapter
from minipeft.errors import Bad
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import TUNER, refuse_turned, written
from minipeft.interop.peft.spec import Key, Trial
from minipeft.model.arch import Arch

SIDES = {"A": "target_modules_bd_a", "B": "target_modules_bd_b"}


def _of_module(config: Config, module: str) -> Config:
    """The side by the module's name; a module of neither is plain LoRA, of one block."""
    given = config["use_bdlora"]
    sides = [side for side, name in SIDES.items() if any(part in module for part in given.get(name) or ())]
    if len(sides) != 1 and (sides or given.get("match_strict", True)):
        raise Bad(
            f"adapter_config.json: use_bdlora: expected one side for {module}, found {' and '.join(sides) or 'none'}"
        )
    if sides == ["B"]:  # PEFT's block-diagonal factors have no bias
        return dict(side="B", blocks=given.get("nblocks", 1), lora_bias=False)
    return dict(side="A", blocks=given.get("nblocks", 1) if sides else 1)


def _reads(config: Config, arch: Arch) -> Config:
    return dict(blocks=config["use_bdlora"].get("nblocks", 1)) | (dict(side="A") if config["lora_bias"] else {})


def _writes(m: Any, arch: Arch) -> Config:
    own = {name: [""] if side == m.side else [] for side, name in SIDES.items()}  # "": a part of every name
    return written(m, arch, use_bdlora=dict(nblocks=m.blocks, match_strict=True) | own)


def _of_adapter(adapter: Adapter, modules: Mapping[str, str], folder: Any) -> Config:
    """Which modules have which side. Raises `Bad` where PEFT, which has one number of blocks, would see others."""
    methods: dict[str, Any] = {site: adapter.at[site] for site in modules}
    biased = any(m.lora_bias for m in methods.values())
    if lost := [s for s, m in methods.items() if biased and not m.lora_bias and m.side == "A"]:
        raise Bad(
            f"{methods[lost[0]].name} cannot be written for PEFT: {modules[lost[0]]} has no lora_bias where others have"
        )
    most = max(m.blocks for m in methods.values())
    own = {side: [modules[s] for s, m in methods.items() if m.side == side and m.blocks == most] for side in SIDES}
    given = dict(nblocks=most, match_strict=all(m.blocks == most for m in methods.values()))
    config: Config = dict(use_bdlora=given | {SIDES[side]: names for side, names in own.items()}, lora_bias=biased)
    for site, m in methods.items():
        found = _of_module(config, modules[site])
        if found["blocks"] != m.blocks or (found["side"] != m.side and m.blocks > 1):
            raise Bad(
                f"{m.name} cannot be written for PEFT: {modules[site]} has {m.blocks} blocks where others have {most}"
            )
    return config


SPEC = dataclasses.replace(
    TUNER,
    keys={
        "A": Key("lora_A.weight", size="(r, in), or (r, in/N) where A is block-diagonal"),
        "B": Key("lora_B.weight", size="(out, r), or (out, r/N) where B is block-diagonal"),
        "c": Key("lora_B.bias", size="(out) with `lora_bias`, where B is not block-diagonal"),
    },
    embedding_keys=None,
    reads=_reads,
    writes=_writes,
    plain=refuse_turned,
    at_module=_of_module,
    of_adapter=_of_adapter,
    claims=lambda config: config.get("use_bdlora") is not None,
    trials=(
        Trial("llama", dict(r=4, alpha=5.0), dict(targets="q_proj o_proj", patterns={"o_proj": dict(side="A")})),
        Trial("llama", dict(r=6, side="A", rslora=True, blocks=3), dict(targets="q_proj"), name="A"),
        Trial("bert-cls", dict(r=4), dict(targets="query value", patterns={"value": dict(blocks=1)}), name="mixed"),
        Trial("t5", dict(r=4), dict(targets="q v"), name="t5"),
    ),
)
