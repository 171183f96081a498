"""GraLoRA in PEFT."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    CONV,
    COUNT,
    INIT,
    LAYERED,
    NUMBER,
    RATE,
    TARGETS,
    WHOLE,
    needed,
    optional,
    read,
    whole,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed

KNOWN = COMMON | TARGETS | LAYERED | WHOLE | BIASES | CONV | INIT | {
    "r": needed(COUNT, 32),
    "hybrid_r": read(whole(0), 0),
    "alpha": needed(NUMBER, 64),
    "gralora_k": read(COUNT, 2),
    "gralora_dropout": read(optional(RATE), 0.0),
}  # fmt: skip

SPEC = Spec(
    "GRALORA",
    KNOWN,
    keys={
        "A": Key("gralora_A", size="(k, in/k, r)"),
        "B": Key("gralora_B", size="(k, r, out/k)"),
        "H": Key("gralora_A_general.weight", size="(h, in)"),
        "G": Key("gralora_B_general.weight", size="(out, h)"),
    },
    settings=dict(r="r", h="hybrid_r", alpha="alpha", k="gralora_k", dropout="gralora_dropout"),
    writes=lambda m, arch: transposed(arch),
    trials=(
        Trial("llama", dict(r=4, k=2, alpha=5.0)),
        Trial("llama", dict(r=4, k=4, h=3, alpha=5.0), name="hybrid"),
        Trial("gpt2", dict(r=4, k=2, alpha=5.0), name="gpt2"),
    ),
)
