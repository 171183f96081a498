"""LoKr in PEFT: which of its matrices a file has depends on the rank, the factor and the widths."""

from __future__ import annotations

from typing import Any

from minipeft.errors import note
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
    Config,
    Kind,
    needed,
    optional,
    pattern,
    plain,
    read,
)  # fmt: skip
from minipeft.interop.peft.kernels import core, is_tucker, kernel, kernel_read, kernel_written
from minipeft.interop.peft.spec import Key, Spec, Trial, turned
from minipeft.model.arch import Arch

FACTOR = Kind("-1 or an integer of at least 1", lambda v: COUNT.holds(v) or (type(v) is int and v == -1))

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | INIT | {
    "r": needed(COUNT, 8),
    "alpha": needed(NUMBER, 8),
    "rank_pattern": read(pattern(COUNT), {}),
    "alpha_pattern": read(pattern(NUMBER), {}),
    "decompose_both": read(FLAG, False),
    "decompose_factor": read(FACTOR, -1),
    "rank_dropout": read(optional(RATE), 0.0),
    "rank_dropout_scale": plain("acts in training only; ours always divides by the share kept", False, FLAG),
    "module_dropout": read(optional(RATE), 0.0),
    "use_effective_conv2d": read(FLAG, False),
}  # fmt: skip
KEYS = {
    "C": Key("lokr_w1", size="(m1, n1)"),
    "P": Key("lokr_w1_a", size="(m1, r)"),
    "Q": Key("lokr_w1_b", size="(r, n1)"),
    "D": Key("lokr_w2", size="(m2, n2)"),
    "B": Key("lokr_w2_a", size="(m2, r)"),
    "A": Key("lokr_w2_b", size="(r, n2)"),
}
FLAT = KEYS | {"D": kernel("lokr_w2")}
TUCKER = {n: FLAT[n] for n in "CPQD"} | {
    "B": Key("lokr_w2_a", turned, turned),
    "U": FLAT["A"],
    "T": core("lokr_t2"),
}


def _examine(config: Config) -> None:
    if config.get("rank_dropout") and not config.get("rank_dropout_scale"):
        note(
            "adapter_config.json: rank_dropout without rank_dropout_scale: in training the rows kept are rescaled here"
        )


def _writes(m: Any, arch: Arch) -> Config:
    own = dict(init_weights="lycoris" if m.start == "lycoris" else True, rank_dropout_scale=m.rank_dropout > 0)
    return own | kernel_written(m)


SPEC = Spec(
    "LOKR",
    KNOWN,
    keys=KEYS,
    patches=FLAT,
    settings={k: k for k in ("r", "alpha", "decompose_both", "rank_dropout", "module_dropout")}
    | dict(factor="decompose_factor"),
    reads=kernel_read,
    writes=_writes,
    settled=lambda config, arch: dict(patches=TUCKER) if is_tucker(config, arch) else {},
    patterns=dict(rank_pattern="r", alpha_pattern="alpha"),
    examine=_examine,
    trials=(
        Trial("llama", dict(r=1, alpha=5.0), dict(patterns={"v_proj": dict(r=7, alpha=2.0)})),
        Trial("llama", dict(r=1, alpha=5.0, factor=6, decompose_both=True), name="both"),
        Trial("vit-channels", dict(r=2, alpha=5.0), dict(targets="projection q_proj"), name="patches"),
        Trial("vit-channels", dict(r=2, alpha=5.0, kernel="tucker"), dict(targets="projection q_proj"), name="tucker"),
        Trial("vit-channels", dict(r=8, alpha=5.0), dict(targets="projection"), name="whole"),
    ),
)
