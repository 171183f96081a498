"""MiSS in PEFT: which variant a file is of, init_weights says, though it is the maths that it chooses."""

from __future__ import annotations

from typing import Any

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    COUNT,
    EXCLUDED,
    LAYERED,
    RATE,
    TARGETS,
    WHOLE,
    Config,
    among,
    needed,
    optional,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | BIASES | {
    "r": needed(COUNT, 64),
    "mini_r": read(COUNT, 1),
    "miss_dropout": read(optional(RATE), 0.0),
    "init_weights": read(among(True, False, "bat", "mini"), True),
}  # fmt: skip


def _reads(config: Config, arch: Any) -> Config:
    return dict(mini=config["mini_r"] if config["init_weights"] == "mini" else 0)


def _writes(m: Any, arch: Any) -> Config:
    return dict(init_weights="mini", mini_r=m.mini) if m.mini else dict(init_weights=True)


SPEC = Spec(
    "MISS",
    KNOWN,
    keys={"D": Key("miss_block", size="(r, out), or (r, m)")},
    settings=dict(r="r", dropout="miss_dropout"),
    reads=_reads,
    writes=_writes,
    claims=lambda config: config.get("init_weights") != "bat",
    trials=(Trial("llama", dict(r=5)), Trial("llama", dict(r=4, mini=3), name="mini")),
)
