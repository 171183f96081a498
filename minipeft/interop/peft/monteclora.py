"""MonteCLoRA in PEFT: `monteclora_config`, and a sampler's parameters and last sample beside LoRA's factors."""

from __future__ import annotations

import dataclasses
from typing import Any

from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import TUNER, written
from minipeft.interop.peft.spec import Key, Trial
from minipeft.model.arch import Arch

OWN = {  # our setting: their field and its default
    "N": ("num_samples", 8),
    "entropy": ("use_entropy", False),
    "prior": ("dirichlet_prior", 0.1),
    "spread": ("sample_scaler", 1e-4),
    "kl": ("kl_loss_weight", 1e-5),
}
SAMPLER = "lora_monteclora_sampler"


def _reads(config: Config, arch: Arch) -> Config:
    return {ours: config["monteclora_config"].get(theirs, usual) for ours, (theirs, usual) in OWN.items()}


def _writes(m: Any, arch: Arch) -> Config:
    own = {theirs: getattr(m, ours) for ours, (theirs, _) in OWN.items()}
    return written(m, arch, monteclora_config=own | dict(buffer_size=150))


SPEC = dataclasses.replace(
    TUNER,
    keys={
        "A": Key("lora_A.weight", size="(r, in)"),
        "B": Key("lora_B.weight", size="(out, r)"),
        "c": Key("lora_B.bias", size="(out) with `lora_bias`"),
        "sigma": Key(f"{SAMPLER}.std_prior", size="(r)"),
        "p": Key(f"{SAMPLER}.expert_weights_prior", size="(num_samples)"),
        "V": Key(f"{SAMPLER}.gaussian_var_prior", size="(r, r)"),
        "w": Key(f"{SAMPLER}.expert_weights", size="(num_samples)"),
    },
    embedding_keys=None,
    reads=_reads,
    writes=_writes,
    claims=lambda config: config.get("monteclora_config") is not None,
    trials=(
        Trial("llama", dict(r=3, alpha=5.0, N=4), dict(targets="q_proj down_proj")),
        Trial("gpt2", dict(r=2, lora_bias=True), name="gpt2"),
    ),
)
