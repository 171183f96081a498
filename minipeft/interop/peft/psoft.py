"""PSOFT in PEFT: what turns and stretches within the space; the space itself is found again in the base where a file is loaded."""

from __future__ import annotations

from typing import Any

from minipeft.engine.factors import signs_hold
from minipeft.errors import note
from minipeft.interop.peft.fields import (
    COMMON,
    CONV,
    COUNT,
    EXCLUDED,
    FLAG,
    INIT,
    LAYERED,
    NUMBER,
    RATE,
    SEED,
    TARGETS,
    WHOLE,
    Config,
    Kind,
    among,
    is_number,
    needed,
    optional,
    plain,
    read,
    whole,
)  # fmt: skip
from minipeft.interop.peft.spec import DECOMPOSED, Key, Spec, Trial
from minipeft.methods.orthogonal.psoft import directions
from minipeft.model.arch import Arch

EPS = Kind("a number in (0, 1)", lambda v: is_number(v) and 0 < v < 1, float)

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | INIT | {
    "r": needed(COUNT, 32),
    "psoft_alpha": plain("B is divided by the scale that the change is multiplied by", 32, NUMBER),
    "psoft_dropout": read(RATE, 0.0),
    "ab_svd_init": needed(among("psoft_init", "pissa_init"), "psoft_init"),
    "psoft_svd": needed(among("full", "lowrank"), "full"),
    "psoft_svd_lowrank_niter": read(whole(0, 1000), 10),
    "random_seed": read(SEED, 0),
    "psoft_orth": read(FLAG, True),
    "psoft_mag_a": read(FLAG, True),
    "psoft_mag_b": read(FLAG, True),
    "use_cayley_neumann": read(FLAG, False),
    "num_cayley_neumann_terms": read(whole(1, 1000), 5),
    "cayley_neumann_eps": read(optional(EPS)),
}  # fmt: skip

VAGUE = (
    "psoft_svd='lowrank': PEFT finds the singular vectors anew on loading, and roundings decide some of their signs here; "
    "merge the adapter where it was trained"
)


def _examine(config: Config) -> None:
    note(
        "adapter_config.json: a PSOFT file lacks its singular vectors, whose signs depend on who decomposes: they are taken "
        "as torch has them on an x86 processor; those of another, or of a GPU, may be others"
    )


def _vague(m: Any, W: Any) -> str:
    return "" if m.svd == "full" or signs_hold(W, directions(m, W), m.niter) else VAGUE


def _writes(m: Any, arch: Arch) -> Config:
    return dict(ab_svd_init=f"{m.split}_init", use_cayley_neumann=m.cayley == "neumann", psoft_alpha=m.r)


SPEC = Spec(
    "PSOFT",
    KNOWN,
    keys={
        "q": Key(
            "psoft_R.weight",
            holds=lambda a, site: a.ndim == 1,
            empty=True,
            size="(r(r − 1)/2), or (r, r) without `psoft_orth`",
        ),
        "O": Key("psoft_R.weight", holds=lambda a, site: a.ndim == 2),
        "alpha": Key("psoft_R.vector_a", size="(r) with `psoft_mag_a`"),
        "beta": Key("psoft_R.vector_b", size="(r) with `psoft_mag_b`"),
    },
    settings=dict(
        r="r",
        orth="psoft_orth",
        scale_in="psoft_mag_a",
        scale_out="psoft_mag_b",
        terms="num_cayley_neumann_terms",
        eps="cayley_neumann_eps",
        svd="psoft_svd",
        niter="psoft_svd_lowrank_niter",
        seed="random_seed",
        dropout="psoft_dropout",
    ),
    reads=lambda config, arch: dict(
        split=config["ab_svd_init"].removesuffix("_init"),
        cayley="neumann" if config["use_cayley_neumann"] else "exact",
    ),
    writes=_writes,
    examine=_examine,
    vague=_vague,
    wide=("peft.tuners.psoft.layer",),
    buffers=dict(A="_psoft_A_cache", B="_psoft_B_cache"),
    notes="the singular triples are taken out of the base again, with signs that depend on who decomposes",
    trials=(
        Trial("llama", dict(r=3), inexact=DECOMPOSED),
        Trial("llama", dict(r=3, orth=False, split="pissa"), name="free", inexact=DECOMPOSED),
    ),
)
