"""DEFT in PEFT."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    CONV,
    COUNT,
    EXCLUDED,
    FLAG,
    INIT,
    LAYERED,
    ONLY_STARTS,
    RATE,
    TARGETS,
    WHOLE,
    Kind,
    among,
    is_number,
    needed,
    optional,
    plain,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed

ALPHA = Kind(
    "a number from 0 on or null", lambda v: v is None or (is_number(v) and v >= 0), lambda v: float(v) if v else None
)

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | BIASES | INIT | {
    "r": needed(COUNT, 8),
    "decomposition_method": needed(among("relu", "qr"), "relu"),
    "alpha": read(ALPHA),
    "para": read(FLAG, False),
    "deft_dropout": read(optional(RATE), 0.0),
    "init_scale": plain(ONLY_STARTS, 1.0),
}  # fmt: skip

SPEC = Spec(
    "DEFT",
    KNOWN,
    keys={"P": Key("deft_P", size="(out, min(r, out))"), "R": Key("deft_R", size="(min(r, out), in)")},
    settings=dict(r="r", projector="decomposition_method", alpha="alpha", dropout="deft_dropout"),
    writes=lambda m, arch: transposed(arch),
    claims=lambda config: not config.get("para"),
    wide=("peft.tuners.deft.layer",),
    trials=(
        Trial("llama", dict(r=3, alpha=5.0)),
        Trial("gpt2", dict(r=3, projector="qr"), name="qr"),
    ),
)
