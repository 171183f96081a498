"""LoHa in PEFT."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    COMMON,
    COUNT,
    EXCLUDED,
    INIT,
    LAYERED,
    NUMBER,
    RATE,
    TARGETS,
    WHOLE,
    needed,
    optional,
    pattern,
    plain,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | INIT | {
    "r": needed(COUNT, 8),
    "alpha": needed(NUMBER, 8),
    "rank_pattern": read(pattern(COUNT), {}),
    "alpha_pattern": read(pattern(NUMBER), {}),
    "rank_dropout": read(optional(RATE), 0.0),
    "module_dropout": read(optional(RATE), 0.0),
    "use_effective_conv2d": plain("concerns convolutions only", False),
}  # fmt: skip

SPEC = Spec(
    "LOHA",
    KNOWN,
    keys={
        "X1": Key("hada_w1_a", size="(out, r)"),
        "Y1": Key("hada_w1_b", size="(r, in)"),
        "X2": Key("hada_w2_a", size="(out, r)"),
        "Y2": Key("hada_w2_b", size="(r, in)"),
    },
    settings={k: k for k in ("r", "alpha", "rank_dropout", "module_dropout")},
    patterns=dict(rank_pattern="r", alpha_pattern="alpha"),
    trials=(Trial("llama", dict(r=3, alpha=5.0), dict(patterns={"v_proj": dict(alpha=2.0)})),),
)
