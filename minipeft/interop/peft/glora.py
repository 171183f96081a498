"""GLoRA in PEFT: a path that is none is written as zeros of its full shape, which mean nothing here."""

from __future__ import annotations

from typing import Any

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    COUNT,
    INIT,
    TARGETS,
    WHOLE,
    Config,
    among,
    needed,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, column
from minipeft.model.arch import Arch

KNOWN = COMMON | TARGETS | WHOLE | BIASES | INIT | {
    "r": needed(COUNT, 8),
    "config_A_B": needed(among("lora", "vector", "constant", "none"), "lora"),
    "config_C": needed(among("lora", "vector", "none"), "lora"),
    "config_D_E": needed(among("constant", "vector", "none"), "constant"),
}  # fmt: skip


def _one(a: Any, arch: Arch) -> Any:
    """One number for a whole matrix has one axis there."""
    return a.reshape(-1) if a.size == 1 else a


FACTORS = {
    f"{n}{end}": Key(f"glora_{n}.X{end}", size=size)
    for n in "ABC"
    for end, size in dict(d="(in, r)" if n == "C" else "(out, r)", u="(r, 1)" if n == "C" else "(r, in)").items()
}
WHOLES = {n: Key(f"glora_{n}.X", column, _one, size="(out, 1) or (1)") for n in "AB"}
WHOLES |= {"C": Key("glora_C.X", size="(in, 1)")} | {n: Key(f"glora_{n}.X", size="(out) or (1)") for n in "DE"}
NONE = {f"{n} of no path": Key(f"glora_{n}.zeros", holds=lambda a, site: a.any(), size="whole") for n in "ABCDE"}


def _settled(config: Config, arch: Arch) -> Config:
    """A vector of one number stays a column."""
    if config["config_A_B"] != "vector":
        return {}
    return dict(keys={**SPEC.keys} | {n: Key(f"glora_{n}.X") for n in "AB"})


SPEC = Spec(
    "GLORA",
    KNOWN,
    keys=FACTORS | WHOLES | NONE,
    settings=dict(r="r", path_AB="config_A_B", path_C="config_C", path_DE="config_D_E"),
    settled=_settled,
    notes="a path that is none has zeros, which may be left out",
    trials=(
        Trial("llama", dict(r=3)),
        Trial("llama", dict(path_AB="vector", path_C="vector", path_DE="vector"), name="vector"),
        Trial("llama", dict(path_AB="constant", path_C="none"), name="constant"),
    ),
)
