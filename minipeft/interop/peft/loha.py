"""LoHa in PEFT."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    COMMON,
    COUNT,
    EXCLUDED,
    FLAG,
    INIT,
    LAYERED,
    NUMBER,
    RATE,
    TARGETS,
    WHOLE,
    needed,
    optional,
    pattern,
    read,
)  # fmt: skip
from minipeft.interop.peft.kernels import core, is_tucker, kernel_read, kernel_written
from minipeft.interop.peft.spec import Key, Spec, Trial, turned

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | INIT | {
    "r": needed(COUNT, 8),
    "alpha": needed(NUMBER, 8),
    "rank_pattern": read(pattern(COUNT), {}),
    "alpha_pattern": read(pattern(NUMBER), {}),
    "rank_dropout": read(optional(RATE), 0.0),
    "module_dropout": read(optional(RATE), 0.0),
    "use_effective_conv2d": read(FLAG, False),
}  # fmt: skip
KEYS = {
    "X1": Key("hada_w1_a", size="(out, r)"),
    "Y1": Key("hada_w1_b", size="(r, in)"),
    "X2": Key("hada_w2_a", size="(out, r)"),
    "Y2": Key("hada_w2_b", size="(r, in)"),
}
TUCKER = {
    "X1": Key("hada_w1_a", turned, turned),
    "U1": KEYS["Y1"],
    "T1": core("hada_t1"),
    "X2": Key("hada_w2_a", turned, turned),
    "U2": KEYS["Y2"],
    "T2": core("hada_t2"),
}

SPEC = Spec(
    "LOHA",
    KNOWN,
    keys=KEYS,
    patches=KEYS,
    settings={k: k for k in ("r", "alpha", "rank_dropout", "module_dropout")},
    reads=kernel_read,
    writes=lambda m, arch: kernel_written(m),
    settled=lambda config, arch: dict(patches=TUCKER) if is_tucker(config, arch) else {},
    patterns=dict(rank_pattern="r", alpha_pattern="alpha"),
    trials=(
        Trial("llama", dict(r=3, alpha=5.0), dict(patterns={"v_proj": dict(alpha=2.0)})),
        Trial("vit-channels", dict(r=3, alpha=5.0), dict(targets="projection q_proj"), name="patches"),
        Trial("vit-channels", dict(r=3, alpha=5.0, kernel="tucker"), dict(targets="projection q_proj"), name="tucker"),
    ),
)
