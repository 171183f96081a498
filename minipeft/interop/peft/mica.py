"""MiCA in PEFT: `init_lora_weights="mica"`, in small letters; in others both factors are trained there, and it is LoRA."""

from __future__ import annotations

import dataclasses

from minipeft.interop.peft.lora import TUNER, written
from minipeft.interop.peft.spec import Trial

FACTORS = TUNER.embedding_keys or {}

SPEC = dataclasses.replace(
    TUNER,
    keys={name: TUNER.keys[name] for name in ("A", "B")},
    embedding_keys={"A_emb": FACTORS["A"], "B_emb": FACTORS["B"]},
    writes=lambda m, arch: written(m, arch, init_lora_weights="mica"),
    claims=lambda config: config.get("init_lora_weights") == "mica" and not config.get("use_dora"),
    trials=(
        Trial(
            "llama",
            dict(r=3, alpha=5.0),
            dict(targets="q_proj down_proj embed_tokens", patterns={"q_proj": dict(r=2, alpha=7.0)}),
        ),
        Trial("gpt2", dict(r=2, rslora=True), name="gpt2"),
    ),
)
