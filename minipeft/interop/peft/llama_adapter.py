"""LLaMA-Adapter in PEFT, "adaption prompts": in the topmost attention blocks, added in one of two ways, as the base decides."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from minipeft.adapted import Adapter
from minipeft.errors import Bad
from minipeft.interop.peft.fields import COMMON, COUNT, TARGETS, Config, needed
from minipeft.interop.peft.spec import Key, Spec, Trial
from minipeft.method import Site
from minipeft.model.arch import Arch
from minipeft.model.base import Model

KNOWN = COMMON | TARGETS | {"adapter_len": needed(COUNT), "adapter_layers": needed(COUNT)}


def _adds(arch: Arch) -> str:
    """How PEFT adds the second attention."""
    return "bare" if arch.fused_qkv else "projected"


def _as_adaption(model: Model, adapter: Adapter) -> Adapter:
    """The adapter in PEFT's reading. Raises `Bad` where that computes something else."""
    method: Any = adapter.method
    wants = _adds(model.arch)
    blocks = [site for site in adapter.at if site.endswith("attn.heads")]
    if method.adds == "heads" and wants == "projected" and not any(f"{s[:-5]}o.bias" in model.params for s in blocks):
        method = dataclasses.replace(method, adds=wants)  # without a bias the two are the same
    if method.adds != wants:
        raise Bad(
            f"llama_adapter: adds={method.adds!r} is not what PEFT computes on {model.arch.family}; expected {wants!r}"
        )
    top = [f"layers.{n}.attn.heads" for n in range(model.arch.layers)][-len(blocks) :]
    if blocks != top:
        raise Bad(
            f"llama_adapter: PEFT adapts the topmost layers; expected {', '.join(top)}, found {', '.join(blocks)}"
        )
    at = {site: dataclasses.replace(m, adds=wants) for site, m in adapter.at.items() if m.name == method.name}  # type: ignore[call-arg]
    at |= {f"{s[:-5]}o.out": method for s in blocks}
    return dataclasses.replace(adapter, method=method, at={**adapter.at, **at})


def _layers(adapter: Adapter, modules: Mapping[str, str], folder: Any) -> Config:
    return dict(adapter_layers=len(modules))


def _absent(
    config: Config, every: Mapping[str, Site], own: Mapping[str, str], found: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """The topmost adapter_layers have a prompt each, and no other. Raises `Bad` for more of them than there are layers."""
    blocks = [s for s in every if re.fullmatch(r"layers\.\d+\.attn\.heads", s)]
    n = config["adapter_layers"]
    if n > len(blocks):
        raise Bad(
            f"adapter_config.json: adapter_layers: expected at most {len(blocks)}, the layers of this base, found {n}"
        )
    yield from (f"the adaption prompt of {s.removesuffix('.attn.heads')}, of adapter_layers={n}" for s in blocks[-n:]
                if s not in found)  # fmt: skip
    if extra := [s for s in found if s not in blocks[-n:]]:
        raise Bad(
            f"adapter_config.json: adapter_layers={n} leaves out {extra[0].removesuffix('.attn.heads')}, which the file has"
        )


SPEC = Spec(
    "ADAPTION_PROMPT",
    KNOWN,
    keys={
        "A": Key("adaption_prompt", lambda a, arch: a[0], lambda a, arch: a[None], (1, None, None), size="(1, K, d)"),
        "g": Key("adaption_gate", size="(1)"),
    },
    settings=dict(K="adapter_len"),
    reads=lambda config, arch: dict(adds=_adds(arch)),
    writes=lambda m, arch: dict(target_modules="attn" if arch.fused_qkv else "self_attn"),
    of_adapter=_layers,
    absent=_absent,
    on_blocks=True,
    plain=_as_adaption,
    wide=("peft.tuners.adaption_prompt.layer", "peft.tuners.adaption_prompt.utils"),
    on_layer=False,
    trials=(
        Trial("llama", dict(K=3, adds="projected"), dict(targets="attn.heads attn.o.out")),
        Trial("gpt2", dict(K=3, adds="bare"), dict(targets="attn.heads attn.o.out"), name="gpt2"),
    ),
)
