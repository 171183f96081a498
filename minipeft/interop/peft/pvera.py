"""PVeRA in PEFT: two vectors a module, and the matrices that all share, which a file may leave out."""

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
    plain,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed

KNOWN = COMMON | TARGETS | LAYERED | WHOLE | CONV | BIASES | INIT | {
    "r": needed(COUNT, 256),
    "projection_prng_key": needed(SEED, 0),
    "save_projection": read(FLAG, True),
    "pvera_dropout": read(optional(RATE), 0.0),
    "d_initial": needed(NUMBER, 0.1),
    "sample_at_inference": read(FLAG, False),
    "generator_seed": plain("which numbers are sampled", None, optional(SEED)),
}  # fmt: skip

SPEC = Spec(
    "PVERA",
    KNOWN,
    keys={"lambda_d": Key("pvera_lambda_d", size="(2r)"), "lambda_b": Key("pvera_lambda_b", size="(out)")},
    root_keys={"A": Key("base_model.pvera_A", size="(2r, in)"), "B": Key("base_model.pvera_B", size="(out, r)")},
    settings=dict(
        r="r",
        d_initial="d_initial",
        seed="projection_prng_key",
        dropout="pvera_dropout",
        sample_at_inference="sample_at_inference",
    ),
    keeps=lambda config: bool(config["save_projection"]),
    unasked=lambda m: "what PEFT samples are other numbers" if m.sample_at_inference else "",
    writes=lambda m, arch: transposed(arch) | dict(save_projection=True),
    trials=(Trial("llama", dict(r=4)),),
)
