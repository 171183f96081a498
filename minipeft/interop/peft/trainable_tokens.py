"""Trainable tokens in PEFT."""

from __future__ import annotations

from minipeft.interop.peft.fields import COMMON, IDS, INIT, TARGETS, needed
from minipeft.interop.peft.spec import Key, Spec, Trial

SPEC = Spec(
    "TRAINABLE_TOKENS",
    COMMON | TARGETS | INIT | {"token_indices": needed(IDS, [])},
    keys={"T": Key("trainable_tokens_delta", size="(n, d)")},
    settings=dict(tokens="token_indices"),
    reads=lambda config, arch: dict(head_bias="drop"),
    trials=(Trial("llama", dict(tokens=(3, 7, 30))),),
)
