"""BOFT in PEFT."""

from __future__ import annotations

from typing import Any

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    CONV,
    COUNT,
    EXCLUDED,
    INIT,
    LAYERED,
    RATE,
    TARGETS,
    WHOLE,
    optional,
    read,
    whole,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, column, transposed, vector

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | BIASES | INIT | {
    "boft_block_size": read(whole(0), 4),
    "boft_block_num": read(whole(0), 0),
    "boft_n_butterfly_factor": read(COUNT, 1),
    "boft_dropout": read(optional(RATE), 0.0),
}  # fmt: skip


def _at_site(config: Any, arrays: Any) -> Any:
    """As many factors as the file has: one, whatever was asked for, without PEFT's extension for CUDA."""
    return dict(factors=len(arrays["R"])) if "R" in arrays else {}


SPEC = Spec(
    "BOFT",
    KNOWN,
    keys={
        "R": Key("boft_R", size="(F, in/β, β, β)"),
        "s": Key("boft_s", vector, column, shape=(None, 1), size="(out, 1)"),
    },
    settings=dict(
        block="boft_block_size", blocks="boft_block_num", factors="boft_n_butterfly_factor", block_dropout="boft_dropout"
    ),
    writes=lambda m, arch: transposed(arch),
    at_site=_at_site,
    unasked=lambda m: "PEFT has one factor where its extension for CUDA is not built" if m.factors > 1 else "",
    wide=("peft.tuners.boft.layer",),
    trials=(Trial("llama", dict(block=4)), Trial("llama", dict(block=0, blocks=3), name="blocks")),
)  # fmt: skip
