"""WaveFT in PEFT: the coefficients alone; the places are drawn again from the seed, the filters are known by their name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.engine.wavelets import FAMILIES
from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    CONV,
    COUNT,
    EXCLUDED,
    FLAG,
    INIT,
    LAYERED,
    NUMBER,
    SEED,
    TARGETS,
    WHOLE,
    Config,
    among,
    needed,
    pattern,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed
from minipeft.model.arch import Arch

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | BIASES | INIT | {
    "n_frequency": needed(COUNT, 2592),
    "n_frequency_pattern": read(pattern(COUNT), {}),
    "scaling": needed(NUMBER, 25.0),
    "wavelet_family": needed(among(*FAMILIES), "db1"),
    "use_idwt": needed(FLAG, True),
    "random_loc_seed": needed(SEED, 777),
    "proportional_parameters": read(FLAG, False),
}  # fmt: skip


def _at_site(config: Config, arrays: Mapping[str, Any]) -> Config:
    """Where they are shared out PEFT does not look at the pattern."""
    return dict(n_frequency=config["n_frequency"]) if config["proportional_parameters"] else {}


def _writes(m: Any, arch: Arch) -> Config:
    return transposed(arch) | dict(init_weights=m.start == "zero")


SPEC = Spec(
    "WAVEFT",
    KNOWN,
    keys={"c": Key("waveft_spectrum", size="(n)")},
    settings=dict(
        n_frequency="n_frequency",
        scaling="scaling",
        wavelet="wavelet_family",
        idwt="use_idwt",
        proportional="proportional_parameters",
        seed="random_loc_seed",
    ),
    writes=_writes,
    patterns=dict(n_frequency_pattern="n_frequency"),
    at_site=_at_site,
    notes="the places are drawn again by PyTorch from the seed",
    trials=(
        Trial("llama", dict(n_frequency=19, wavelet="db2"), dict(patterns={"v_proj": dict(n_frequency=5)})),
        Trial("llama", dict(n_frequency=19, wavelet="coif2", seed=-3), name="coif2"),
        Trial("llama", dict(n_frequency=19, idwt=False, proportional=True), name="proportional"),
    ),
)
