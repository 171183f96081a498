"""DeLoRA in PEFT."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    COUNT,
    EXCLUDED,
    INIT,
    LAYERED,
    POSITIVE,
    RATE,
    TARGETS,
    WHOLE,
    needed,
    optional,
    pattern,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | BIASES | INIT | {
    "r": needed(COUNT, 8),
    "delora_lambda": read(POSITIVE, 15),
    "module_dropout": read(optional(RATE), 0.0),
    "rank_pattern": read(pattern(COUNT), {}),
    "lambda_pattern": read(pattern(POSITIVE), {}),
}  # fmt: skip

SPEC = Spec(
    "DELORA",
    KNOWN,
    keys={
        "A": Key("delora_A", size="(r, in)"),
        "B": Key("delora_B", size="(out, r)"),
        "lam": Key("delora_lambda", size="(1)"),
        "n": Key("delora_w_norm", size="(in)"),
    },
    settings=dict(r="r", bound="delora_lambda", dropout="module_dropout"),
    patterns=dict(rank_pattern="r", lambda_pattern="bound"),
    trials=(Trial("llama", dict(r=3), dict(patterns={"v_proj": dict(r=2, bound=7.0)})),),
)
