"""RandLoRA in PEFT: two matrices a module, and the random ones that all share, which a file may leave out."""

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
    Config,
    needed,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed
from minipeft.model.arch import Arch

KNOWN = COMMON | TARGETS | LAYERED | WHOLE | CONV | BIASES | INIT | {
    "r": needed(COUNT, 32),
    "randlora_alpha": needed(NUMBER, 640),
    "projection_prng_key": needed(SEED, 0),
    "save_projection": read(FLAG, True),
    "sparse": read(FLAG, False),
    "very_sparse": read(FLAG, False),
    "randlora_dropout": read(RATE, 0.0),
}  # fmt: skip


def _reads(config: Config, arch: Arch) -> Config:
    return dict(bases="very_sparse" if config["very_sparse"] else "sparse" if config["sparse"] else "dense")


SPEC = Spec(
    "RANDLORA",
    KNOWN,
    keys={"Lambda": Key("randlora_lambda", size="(r, n)"), "Gamma": Key("randlora_gamma", size="(n, min(in, out))")},
    root_keys={
        "A": Key("base_model.randlora_A", size="(r, 1, m)"),
        "B": Key("base_model.randlora_B", size="(max(in, out), n, r)"),
    },
    copied=True,
    settings=dict(r="r", alpha="randlora_alpha", seed="projection_prng_key", dropout="randlora_dropout"),
    reads=_reads,
    keeps=lambda config: bool(config["save_projection"]),
    writes=lambda m, arch: (
        transposed(arch) | dict(save_projection=True, sparse=m.bases == "sparse", very_sparse=m.bases == "very_sparse")
    ),
    trials=(
        Trial("llama", dict(r=5)),
        Trial("llama", dict(r=3, bases="sparse"), dict(targets="q_proj down_proj"), name="sparse"),
    ),
)
