"""BEFT in PEFT."""

from __future__ import annotations

from minipeft.interop.peft.fields import COMMON, INIT, TARGETS, WHOLE
from minipeft.interop.peft.spec import Key, Spec, Trial, row, vector

SPEC = Spec(
    "BEFT",
    COMMON | TARGETS | WHOLE | INIT,
    keys={"beta": Key("beft_bias", vector, row, shape=(1, None), size="(1, out)")},
    trials=(Trial("llama"), Trial("bert-cls", dict(targets="attn.v.weight"), name="bert")),
)
