"""KaSA in PEFT: `kasa_config`, and the singular values beside LoRA's factors; the base is truncated again when a file is loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from minipeft.engine.factors import singular
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import CHANGING, TUNER, began, refuse_turned, written
from minipeft.interop.peft.spec import DECOMPOSED, Key, Trial
from minipeft.method import Site
from minipeft.model.arch import Arch


def _claims(config: Config) -> bool:
    return config.get("kasa_config") is not None


def _reads(config: Config, arch: Arch) -> Config:
    own = config["kasa_config"]
    return dict(beta=own.get("beta", 1e-4), gamma=own.get("gamma", 1e-3))


def _writes(m: Any, arch: Arch) -> Config:
    return written(m, arch, kasa_config=dict(beta=m.beta, gamma=m.gamma))


def _left(config: Config, W: np.ndarray, m: Any, site: Site, turned: bool) -> np.ndarray:
    """W without its last part."""
    U, S, Vt = singular(site.name, W)
    return np.asarray(U[:, : -m.r] * S[: -m.r] @ Vt[: -m.r])


SPEC = dataclasses.replace(
    TUNER,
    keys={
        "A": Key("lora_A.weight", size="(r, in)"),
        "B": Key("lora_B.weight", size="(out, r)"),
        "c": Key("lora_B.bias", size="(out) with `lora_bias`"),
        "d": Key("lora_diag", size="(r)"),
    },
    embedding_keys=None,
    reads=_reads,
    writes=_writes,
    plain=refuse_turned,
    claims=_claims,
    takes=_claims,
    leaves=_left,
    takes_last=True,
    holds=lambda config, naming: began(config) not in CHANGING,
    wide=(*TUNER.wide, "peft.tuners.lora.variants"),
    trials=(
        Trial("llama", dict(r=3, alpha=5.0), dict(targets="q_proj down_proj"), inexact=DECOMPOSED),
        Trial("bert-cls", dict(r=2, rslora=True, lora_bias=True), name="bert", inexact=DECOMPOSED),
    ),
)
