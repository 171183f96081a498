"""PiSSA and OLoRA in PEFT: `init_lora_weights`, which takes the factors' start out of the base when a file is loaded.

`pissa_niter_N` begins at random then, and leaves another base each time: such an adapter is written as plain LoRA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minipeft.errors import Bad
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import (
    BEGIN,
    CONVERTED,
    TUNER,
    as_lora,
    factors_of,
    principal,
    refuse_transposed,
    written,
)
from minipeft.interop.peft.spec import DECOMPOSED, Trial
from minipeft.model.arch import Arch


def _writes(m: Any, arch: Arch) -> Config:
    if m.factors == "fast":
        return CONVERTED.write(m, arch)
    refuse_transposed(BEGIN[m.factors], arch)
    return written(m, arch, init_lora_weights=BEGIN[m.factors])


def _refuse_tables(config: Config, modules: Mapping[str, str], arrays: Any) -> Config:
    """Raises `Bad` for a table or what may be tied to one, which PEFT decomposes as a parameter alone, and changes for both."""
    for site in modules:
        if site.startswith(("embed.", "head.")) and config.get("target_parameters"):
            raise Bad(
                f"adapter_config.json: target_parameters: init_lora_weights={config['init_lora_weights']!r} at "
                f"{modules[site]}.weight is not supported: PEFT changes the table itself"
            )
    return {}


SPEC = dataclasses.replace(
    TUNER,
    at_sites=_refuse_tables,
    reads=lambda config, arch: factors_of(config, arch, "factors"),
    writes=_writes,
    plain=lambda model, adapter: as_lora(model, adapter) if adapter.method.factors == "fast" else adapter,  # type: ignore[attr-defined]
    claims=lambda config: principal(config) and not config.get("use_dora"),
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
