"""Prompt tuning in PEFT; the prompts of P-tuning, whose network is not saved, are read as such."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.adapted import Adapter
from minipeft.errors import Bad
from minipeft.interop.peft.fields import ONLY_STARTS, PROMPT, Config, plain, stacks
from minipeft.interop.peft.spec import Key, Spec, Trial
from minipeft.model.arch import Arch
from minipeft.model.base import Model

KNOWN = PROMPT | {
    "prompt_tuning_init": plain(ONLY_STARTS, "RANDOM"),
    "prompt_tuning_init_text": plain(ONLY_STARTS),
    "tokenizer_name_or_path": plain(ONLY_STARTS),
    "tokenizer_kwargs": plain(ONLY_STARTS),
}
ROWS = {"P": Key("prompt_embeddings", size="(p, d)")}


def reads(config: Config, arch: Arch) -> Config:
    typed = config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
    return dict(
        pool="last_position" if arch.head == "classify" and arch.pool == "last" else "token",
        ignores="positions" if typed else "positions and types",
    )


def _stacks(arch: Arch) -> int:
    """For how many stacks PEFT has virtual tokens where it reads both: not without a head, where it uses all rows."""
    return 2 if arch.encoder_layers and arch.head == "lm" else 1


def sized(m: Any, arch: Arch) -> Config:
    """The fields that tell of the base."""
    return dict(
        token_dim=arch.d,
        num_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_transformer_submodules=_stacks(arch),
    )


def rows(config: Config, arch: Arch) -> Config:
    """With two stacks PEFT makes twice as many rows as it uses."""
    if stacks({"num_transformer_submodules": _stacks(arch)} | config, arch) == 1:
        return {}
    p = config.get("num_virtual_tokens")

    def ours(a: Any, arch: Arch) -> Any:
        return a[: len(a) // 2] if p is None or len(a) == 2 * p else a

    def theirs(a: Any, arch: Arch) -> Any:
        return np.concatenate([a, np.zeros_like(a)])

    return dict(root_keys={"P": Key("prompt_embeddings", ours, theirs)})


def pooled(model: Model, adapter: Adapter) -> Adapter:
    """The adapter as it is. Raises `Bad` where PEFT computes something else with a classifier."""
    method: Any = adapter.method
    if model.arch.head == "classify" and model.arch.causal and method.pool != "last_position":
        raise Bad(
            f"{method.name}: pool={method.pool!r} is not what PEFT computes with a classifier on {model.arch.family}, which "
            "reads the last position, padding or not; expected 'last_position'"
        )
    return adapter


SPEC = Spec(
    "PROMPT_TUNING",
    KNOWN,
    root_keys=ROWS,
    settings=dict(p="num_virtual_tokens"),
    reads=reads,
    writes=lambda m, arch: sized(m, arch) | dict(prompt_tuning_init="RANDOM"),
    settled=rows,
    plain=pooled,
    tasked=True,
    embeds=True,
    on_layer=False,
    trials=(
        Trial("llama", dict(p=3)),
        Trial("bert-cls", dict(p=3), name="bert"),
        Trial("t5", dict(p=3), name="t5"),
        Trial("t5gated", dict(p=3), name="t5 unequal"),
        Trial("mistral", dict(p=3), name="window"),
    ),
)
