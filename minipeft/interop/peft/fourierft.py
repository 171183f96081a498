"""FourierFT in PEFT: the coefficients alone; the places are drawn again from the seed."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    CONV,
    COUNT,
    EXCLUDED,
    LAYERED,
    NUMBER,
    ONLY_STARTS,
    SEED,
    TARGETS,
    WHOLE,
    needed,
    pattern,
    plain,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | BIASES | {
    "n_frequency": needed(COUNT, 1000),
    "n_frequency_pattern": read(pattern(COUNT), {}),
    "scaling": needed(NUMBER, 150.0),
    "random_loc_seed": needed(SEED, 777),
    "init_weights": plain(ONLY_STARTS, False),
}  # fmt: skip

SPEC = Spec(
    "FOURIERFT",
    KNOWN,
    keys={"c": Key("fourierft_spectrum", size="(n)")},
    settings=dict(n_frequency="n_frequency", scaling="scaling", seed="random_loc_seed"),
    writes=lambda m, arch: transposed(arch),
    patterns=dict(n_frequency_pattern="n_frequency"),
    notes="the places are drawn again by PyTorch from the seed",
    trials=(Trial("llama", dict(n_frequency=9, scaling=20.0), dict(patterns={"v_proj": dict(n_frequency=5)})),),
)
