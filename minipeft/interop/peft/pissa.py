"""PiSSA and OLoRA in PEFT: `init_lora_weights`, which takes the factors' start out of the base when a file is loaded.

`pissa_niter_N` begins at random then, and leaves another base each time: such an adapter is written as plain LoRA.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from minipeft.engine.factors import leading
from minipeft.engine.factors import principal as principal_part
from minipeft.errors import Bad
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import (
    BEGIN,
    CONVERTED,
    FACTORS_OF,
    TUNER,
    as_lora,
    began,
    beside_base,
    chosen,
    factors_of,
    principal,
    refuse_transposed,
    written,
)
from minipeft.interop.peft.spec import DECOMPOSED, Trial
from minipeft.method import Site
from minipeft.model.arch import Arch


def _writes(m: Any, arch: Arch) -> Config:
    if m.factors == "fast":
        return CONVERTED.write(m, arch)
    refuse_transposed(BEGIN[m.factors], arch)
    return written(m, arch, init_lora_weights=BEGIN[m.factors])


def _left(config: Config, W: np.ndarray, m: Any, site: Site, turned: bool) -> np.ndarray:
    """W less its first part, in the layout in which it is stored."""
    if began(config) == "olora":
        if turned and W.shape[0] != W.shape[1]:
            refuse_transposed("olora", site.arch)
        A, B = leading(W, m.r)
        return np.asarray(W - m.scale * B @ A)
    if m.scale <= 0:
        raise Bad(f"adapter_config.json: init_lora_weights='pissa': alpha must be positive, found {m.alpha}")
    A, B = principal_part(W, m.r)
    return np.asarray(W - B @ A)


SPEC = dataclasses.replace(
    TUNER,
    reads=lambda config, arch: factors_of(config, arch, "factors"),
    writes=_writes,
    plain=lambda model, adapter: as_lora(model, adapter) if adapter.method.factors == "fast" else adapter,  # type: ignore[attr-defined]
    claims=lambda config: principal(config) and not chosen(config),
    takes=lambda config: began(config) in FACTORS_OF,
    leaves=_left,
    holds=beside_base,
    trials=(
        Trial("llama", dict(r=3), inexact=DECOMPOSED),
        Trial(
            "llama",
            dict(r=3, factors="qr", rslora=True),
            dict(targets="q_proj down_proj"),
            name="olora",
            inexact=DECOMPOSED,
        ),
        Trial(
            "llama",
            dict(r=2, factors="fast", niter=1),
            dict(targets="q_proj down_proj embed_tokens", patterns={"q_proj": dict(r=3, alpha=5.0)}),
            name="fast",
        ),
        Trial("gpt2", dict(r=2, factors="fast", rslora=True), name="fast gpt2"),
    ),
)
