"""LoRA-GA in PEFT: plain LoRA, with the factors that it began with as further directions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from minipeft.adapted import Adapter
from minipeft.engine.backend import to_host
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import TUNER
from minipeft.interop.peft.spec import Trial, never, remade
from minipeft.method import method_class
from minipeft.model.arch import Arch
from minipeft.model.base import Model


def _doubled(m: Any) -> Any:
    """LoRA of twice the rank and the same scale."""
    plain: Any = method_class("lora")
    return plain(r=2 * m.r, alpha=m.alpha * (2**0.5 if m.rslora else 2), dropout=m.dropout, rslora=m.rslora)


def _as_lora(model: Model, adapter: Adapter) -> Adapter:
    """Factors A0, B0 that are subtracted from the base, as further directions: B A − B0 A0 = [B, B0] [A; −A0]."""
    at = {site: _doubled(m) for site, m in adapter.at.items() if m.name == adapter.method.name}
    arrays = {}
    for site, own in adapter.grouped().items():
        if site in at:
            own = {k: to_host(a) for k, a in own.items()}
            arrays[f"{site}:A"] = np.concatenate([own["A"], -own["A0"]])
            arrays[f"{site}:B"] = np.concatenate([own["B"], own["B0"]], axis=1)
    return remade(adapter, _doubled(adapter.method), at, arrays)


def _writes(m: Any, arch: Arch) -> Config:
    return TUNER.write(_doubled(m), arch)


SPEC = dataclasses.replace(
    TUNER,
    writes=_writes,
    claims=never,
    plain=_as_lora,
    unasked=lambda m: "PEFT makes this from a gradient it estimates itself",
    trials=(Trial("llama", dict(r=3)),),
)
