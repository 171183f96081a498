"""VeRA in PEFT: two vectors a module, and the matrices that all share, which a file may leave out."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    CONV,
    COUNT,
    FLAG,
    INIT,
    LAYERED,
    NUMBER,
    RATE,
    SEED,
    TARGETS,
    WHOLE,
    needed,
    optional,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed

KNOWN = COMMON | TARGETS | LAYERED | WHOLE | CONV | BIASES | INIT | {
    "r": needed(COUNT, 256),
    "projection_prng_key": needed(SEED, 0),
    "save_projection": read(FLAG, True),
    "vera_dropout": read(optional(RATE), 0.0),
    "d_initial": needed(NUMBER, 0.1),
}  # fmt: skip

SPEC = Spec(
    "VERA",
    KNOWN,
    keys={"lambda_d": Key("vera_lambda_d", size="(r)"), "lambda_b": Key("vera_lambda_b", size="(out)")},
    root_keys={"A": Key("base_model.vera_A", size="(r, in)"), "B": Key("base_model.vera_B", size="(out, r)")},
    settings=dict(r="r", d_initial="d_initial", seed="projection_prng_key", dropout="vera_dropout"),
    keeps=lambda config: bool(config["save_projection"]),
    writes=lambda m, arch: transposed(arch) | dict(save_projection=True),
    trials=(Trial("llama", dict(r=4)),),
)
