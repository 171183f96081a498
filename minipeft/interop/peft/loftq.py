"""LoftQ in PEFT: `init_lora_weights`, by which the base is quantised again when a file is loaded, on an accelerator alone.

What PEFT would quantise otherwise is written as plain LoRA, for the base as it became, which must be saved beside it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from minipeft.arrays import declared
from minipeft.drawing import Facts
from minipeft.engine.backend import to_host
from minipeft.errors import Bad
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import TUNER, began, beside, chosen, refuse_transposed, straight, written
from minipeft.method import Site, method_class
from minipeft.model.arch import Arch

CODES = {4: "nf4", 8: "int8"}


def _reads(config: Config, arch: Arch) -> Config:
    own = config["loftq_config"]
    if lost := [name for name in ("loftq_bits", "loftq_iter") if name not in (own or {})]:
        raise Bad(f"adapter_config.json: init_lora_weights='loftq' needs {lost[0]!r} in loftq_config")
    return dict(code=CODES[own["loftq_bits"]], rounds=own["loftq_iter"], reading="peft")


def _left(config: Config, W: np.ndarray, m: Any, site: Site, turned: bool) -> np.ndarray:
    """What is held in few bits of W, in the layout in which it is stored."""
    if turned and W.shape[0] != W.shape[1]:
        refuse_transposed("loftq", site.arch)
    cls: Any = method_class("loftq")
    method = cls(r=m.r, **_reads(config, site.arch))
    alone = dataclasses.replace(site, name="the weight", shape=W.shape, W=W)  # whoever else has it
    return np.asarray(to_host(declared(cls).held.make(method, Facts(method, alone)).dequantize()), np.float64)  # type: ignore[union-attr]


def _writes(m: Any, arch: Arch) -> Config:
    bits = {code: n for n, code in CODES.items()}.get(m.code)
    if (
        bits is None
        or m.reading != "peft"
        or (bits == 4 and (m.block != 64 or m.double_quant))
        or arch.family == "gpt2"
    ):
        return written(m, arch)
    return written(m, arch, init_lora_weights="loftq", loftq_config=dict(loftq_bits=bits, loftq_iter=m.rounds))


SPEC = dataclasses.replace(
    TUNER,
    reads=_reads,
    writes=_writes,
    claims=lambda config: beside(config) == "loftq" and not chosen(config),
    takes=lambda config: began(config) == "loftq",
    leaves=_left,
    holds=lambda config, naming: straight(naming),
    on_layer=False,
    readings=dict(reading="peft"),
)
