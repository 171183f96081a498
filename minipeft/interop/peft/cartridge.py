"""Cartridges in PEFT: what stays and what is trained in one tensor, as the prefixes of prefix tuning."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.interop.peft import prefix_tuning
from minipeft.interop.peft.fields import PROMPT, Config, needed, whole
from minipeft.interop.peft.spec import NARROW, Key, Spec, Trial
from minipeft.model.arch import Arch

KNOWN = PROMPT | {"num_frozen_tokens": needed(whole(0), 1)}


def _parts(config: Config, arch: Arch) -> Config:
    """The first rows stay, the others are trained."""
    p, frozen = config["num_virtual_tokens"], config["num_frozen_tokens"]

    def padded(before: int, after: int) -> Any:
        return lambda a, arch: np.pad(a, ((before, after), (0, 0)))

    first = Key("prompt_embeddings", lambda a, arch: a[:frozen], padded(0, p - frozen))
    rest = Key("prompt_embeddings", lambda a, arch: a[frozen:], padded(frozen, 0))
    return dict(root_keys=({"F": first} if frozen else {}) | ({"E": rest} if frozen < p else {}))


SPEC = Spec(
    "CARTRIDGE",
    KNOWN,
    root_keys={"F": Key("prompt_embeddings", size="the first num_frozen_tokens of (p, 2 layers kv d_h)"),
               "E": Key("prompt_embeddings", size="the others of (p, 2 layers kv d_h)")},
    settings=dict(p="num_virtual_tokens", frozen="num_frozen_tokens"),
    reads=prefix_tuning.reads,
    writes=lambda m, arch: {k: v for k, v in prefix_tuning.writes(m, arch).items() if k in KNOWN},
    settled=_parts,
    plain=prefix_tuning.as_prefixes,
    tasked=True,
    on_layer=False,
    trials=(
        Trial("llama", dict(p=3), inexact=NARROW),
        Trial("gpt2", dict(p=4, frozen=2), name="gpt2", inexact=NARROW),
        Trial("mistral", dict(p=3, frozen=0, window="past"), name="window"),
        Trial("t5", dict(p=3), name="t5 ordered", inexact=NARROW),
        Trial("t5gated", dict(p=3, layout="peft", blocks=3), name="t5 unequal", inexact=NARROW),
    ),
)  # fmt: skip
