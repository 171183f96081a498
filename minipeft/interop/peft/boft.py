"""BOFT in PEFT."""

from __future__ import annotations

from typing import Any

from minipeft.errors import Bad
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
    Config,
    optional,
    read,
    whole,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, column, row, transposed, vector
from minipeft.model.arch import Arch

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | BIASES | INIT | {
    "boft_block_size": read(whole(0), 4),
    "boft_block_num": read(whole(0), 0),
    "boft_n_butterfly_factor": read(COUNT, 1),
    "boft_dropout": read(optional(RATE), 0.0),
}  # fmt: skip


def _reads(config: Config, arch: Arch) -> Config:
    size, number = config["boft_block_size"], config["boft_block_num"]
    if (size > 0) == (number > 0):
        raise Bad(f"adapter_config.json: boft_block_size={size}, boft_block_num={number}: expected one of them to be 0")
    return dict(block=size or number, by_number=number > 0)


def _writes(m: Any, arch: Arch) -> Config:
    size, number = (0, m.block) if m.by_number else (m.block, 0)
    return transposed(arch) | dict(boft_block_size=size, boft_block_num=number)


def _at_site(config: Any, arrays: Any) -> Any:
    """As many factors as the file has: one, whatever was asked for, without PEFT's extension for CUDA."""
    return dict(factors=len(arrays["R"])) if "R" in arrays else {}


R = Key("boft_R", size="(F, in/β, β, β)")

SPEC = Spec(
    "BOFT",
    KNOWN,
    keys={"R": R, "s": Key("boft_s", vector, column, shape=(None, 1), size="(out, 1)")},
    patches={"R": R, "s": Key("boft_s", vector, row, shape=(1, None))},
    settings=dict(factors="boft_n_butterfly_factor", block_dropout="boft_dropout"),
    reads=_reads,
    writes=_writes,
    at_site=_at_site,
    unasked=lambda m: "PEFT has one factor where its extension for CUDA is not built" if m.factors > 1 else "",
    wide=("peft.tuners.boft.layer",),
    trials=(
        Trial("llama", dict(block=4)),
        Trial("llama", dict(block=3, by_number=True), name="by number"),
        Trial("vit-channels", dict(block=2), dict(targets="projection q_proj"), name="patches"),
    ),
)  # fmt: skip
