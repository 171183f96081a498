"""Super-Tuning in PEFT: the values, their places counted row by row, and LoRA's factors with a rank. A file may leave the places out."""

from __future__ import annotations

from typing import Any

from minipeft.interop.peft.fields import (
    COMMON,
    COUNT,
    FLAG,
    INIT,
    NUMBER,
    RATE,
    TARGETS,
    WHOLE,
    Config,
    Kind,
    needed,
    optional,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, int32
from minipeft.model.arch import Arch

RANK = Kind("an integer of at least 1 or null", lambda v: v is None or COUNT.holds(v), lambda v: v or 0)

KNOWN = COMMON | TARGETS | WHOLE | INIT | {
    "sparsity": needed(RATE, 0.99),
    "select_top": read(FLAG, True),
    "r": read(RANK),
    "lora_alpha": read(optional(NUMBER)),
    "lora_dropout": read(RATE, 0.0),
    "save_precomputed_indices": read(FLAG, True),
}  # fmt: skip

KEYS = {
    "v": Key("supertuning_values", size="(n)"),
    "p": Key("supertuning_indices", theirs=int32, whole=True, size="(n): row · in + column"),
    "A": Key("supertuning_lora_A.weight", size="(r, in) with `r`"),
    "B": Key("supertuning_lora_B.weight", size="(out, r) with `r`"),
}


def _settled(config: Config, arch: Arch) -> Config:
    """Places that are not saved are those of the base."""
    saved = config.get("save_precomputed_indices", True)
    return {} if saved else dict(keys={k: key for k, key in KEYS.items() if k != "p"})


def _reads(config: Config, arch: Arch) -> Config:
    alpha = config.get("lora_alpha")
    return {} if alpha is None or not config["r"] else dict(scale=alpha / config["r"])


def _writes(m: Any, arch: Arch) -> Config:
    return dict(r=m.r or None, lora_alpha=m.scale * m.r if m.r else None, save_precomputed_indices=True)


SPEC = Spec(
    "SUPERTUNING",
    KNOWN,
    keys=KEYS,
    settings=dict(sparsity="sparsity", top="select_top", r="r", dropout="lora_dropout"),
    reads=_reads,
    writes=_writes,
    settled=_settled,
    trials=(
        Trial("llama", dict(sparsity=0.9)),
        Trial("bert-cls", dict(sparsity=0.8, top=False, r=2, scale=2.5), name="supra"),
    ),
)
