"""PEANuT in PEFT: the two outer matrices, and as many inner ones on either side as `depth` says."""

from __future__ import annotations

from typing import Any

from minipeft.checkpoints.config import ACTS
from minipeft.interop.peft.fields import (
    COMMON,
    COUNT,
    EXCLUDED,
    INIT,
    LAYERED,
    NUMBER,
    TARGETS,
    WHOLE,
    Config,
    Kind,
    needed,
    whole,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial
from minipeft.model.arch import Arch

ACT = Kind(f"one of {', '.join(map(repr, sorted(ACTS)))}", lambda v: isinstance(v, str) and v in ACTS)
DEPTH = whole(0, 64)

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | INIT | {
    "r": needed(COUNT, 32),
    "depth": needed(DEPTH, 0),
    "act_fn": needed(ACT, "relu"),
    "scaling": needed(NUMBER, 1.0),
}  # fmt: skip


def _keys(depth: int) -> dict[str, Key]:
    inner = {
        f"{ours}{i}": Key(f"peanut_{theirs}.{i}.weight", size="(r, r)")
        for i in range(depth)
        for ours, theirs in (("E", "encoders"), ("D", "decoders"))
    }
    outer = {"A": Key("peanut_A.weight", size="(r, out)"), "B": Key("peanut_B.weight", size="(out, r)")}
    return outer | inner


def _writes(m: Any, arch: Arch) -> Config:
    return dict(act_fn=next(theirs for theirs, ours in reversed(ACTS.items()) if ours == m.f))


SPEC = Spec(
    "PEANUT",
    KNOWN,
    keys=_keys(1),
    settings=dict(r="r", depth="depth", scale="scaling"),
    reads=lambda config, arch: dict(f=ACTS[config["act_fn"]]),
    writes=_writes,
    settled=lambda config, arch: dict(keys=_keys(config["depth"])),
    notes="the inner ones are counted from 0 to `depth` − 1",
    trials=(
        Trial("llama", dict(r=3, depth=2, f="silu", scale=0.5)),
        Trial("bert-cls", dict(r=2), name="shallow"),
    ),
)
