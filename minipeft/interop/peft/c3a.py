"""C3A in PEFT: the kernels as they are; it computes with them in float32."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    COUNT,
    LAYERED,
    ONLY_STARTS,
    TARGETS,
    WHOLE,
    needed,
    pattern,
    plain,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial

KNOWN = COMMON | TARGETS | LAYERED | WHOLE | BIASES | {
    "block_size": needed(COUNT, 256),
    "block_size_pattern": read(pattern(COUNT), {}),
    "init_weights": plain(ONLY_STARTS, "xavier_uniform"),
}  # fmt: skip

SPEC = Spec(
    "C3A",
    KNOWN,
    keys={"k": Key("c3a_kernel", size="(out/β, in/β, β)")},
    settings=dict(block="block_size"),
    patterns=dict(block_size_pattern="block"),
    wide=("peft.tuners.c3a.layer",),
    trials=(Trial("llama", dict(block=4), inexact="PEFT computes in float32"),),
)
