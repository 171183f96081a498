"""HRA in PEFT."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    COUNT,
    EXCLUDED,
    FLAG,
    INIT,
    LAYERED,
    TARGETS,
    WHOLE,
    needed,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | BIASES | INIT | {
    "r": needed(COUNT, 8),
    "apply_GS": read(FLAG, False),
}  # fmt: skip

KEYS = {"u": Key("hra_u", size="(in, r)")}

SPEC = Spec(
    "HRA",
    KNOWN,
    keys=KEYS,
    patches=KEYS,
    settings=dict(r="r", gram_schmidt="apply_GS"),
    unasked=lambda m: "PEFT has no λ" if m.lam else "",
    trials=(
        Trial("llama", dict(r=4)),
        Trial("llama", dict(r=3, gram_schmidt=True), name="gram_schmidt"),
        Trial("vit-channels", dict(r=3), dict(targets="projection q_proj"), name="patches"),
    ),
)
