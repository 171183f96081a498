"""PaRa in PEFT: DEFT with `para`, which has no R."""

from __future__ import annotations

import dataclasses

from minipeft.interop.peft.deft import ALPHA
from minipeft.interop.peft.deft import SPEC as DEFT
from minipeft.interop.peft.fields import RATE, optional, plain
from minipeft.interop.peft.spec import Key, Trial, transposed

NONE = "belongs to R, of which there is none with `para`"

SPEC = dataclasses.replace(
    DEFT,
    known={**DEFT.known, "alpha": plain(NONE, None, ALPHA), "deft_dropout": plain(NONE, 0.0, optional(RATE))},
    keys={"P": Key("deft_P", size="(out, min(r, out))")},
    settings=dict(r="r", projector="decomposition_method"),
    writes=lambda m, arch: transposed(arch) | dict(para=True),
    claims=lambda config: bool(config.get("para")),
    trials=(Trial("llama", dict(r=2)), Trial("bert-cls", dict(r=2, projector="relu"), name="relu")),
)
