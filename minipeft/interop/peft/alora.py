"""aLoRA in PEFT: plain LoRA with `alora_invocation_tokens`, which act in a model of task_type CAUSAL_LM alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import TUNER, written
from minipeft.interop.peft.spec import Key, Trial
from minipeft.model.arch import Arch

TASK = "CAUSAL_LM"


def _writes(m: Any, arch: Arch) -> Config:
    if arch.head != "lm" or arch.encoder_layers:
        return written(m, arch)  # PEFT gives it no ids, and leaves it out
    return written(m, arch, task_type=TASK)


def _offsets(model: Any, inputs: Mapping[str, Any]) -> Config:
    """How many tokens it acts on in each row."""
    import torch
    from peft.tuners.lora.variants import calculate_alora_offsets

    return dict(alora_offsets=calculate_alora_offsets(model.peft_config, "default", torch.tensor(inputs["input_ids"])))


SPEC = dataclasses.replace(
    TUNER,
    keys={
        "A": Key("lora_A.weight", size="(r, in)"),
        "B": Key("lora_B.weight", size="(out, r)"),
        "c": Key("lora_B.bias", size="(out) with `lora_bias`"),
    },
    embedding_keys=None,
    settings={**TUNER.settings, "invocation": "alora_invocation_tokens"},
    writes=_writes,
    claims=lambda config: bool(config.get("alora_invocation_tokens")),
    left_out=lambda config: config.get("task_type") != TASK,
    layer=dict(task_type=None),  # its model there has none
    called=_offsets,
    traced={},
    trials=(
        Trial("llama", dict(r=3, alpha=5.0, invocation=(4, 11)), dict(targets="q_proj v_proj down_proj")),
        Trial("gpt2", dict(r=2, rslora=True, invocation=(30,), lora_bias=True), name="gpt2"),
    ),
)
