"""Prefix tuning in PEFT: the prefixes that the network made, of all blocks in one tensor."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from minipeft.adapted import Adapter
from minipeft.engine.backend import to_host
from minipeft.errors import Bad
from minipeft.interop.peft.fields import ONLY_STARTS, PROMPT, Config, plain, stacks
from minipeft.interop.peft.spec import NARROW, Key, Spec, Trial, remade
from minipeft.model.arch import Arch
from minipeft.model.base import Model

MADE = "the file has the prefixes that the network made"
KNOWN = PROMPT | {
    "init_weights": plain(ONLY_STARTS),
    "encoder_hidden_size": plain(MADE),
    "prefix_projection": plain(MADE, False),
}


def reads(config: Config, arch: Arch) -> Config:
    """Raises `Bad` where the prefixes do not fit this base."""
    both = 2 if arch.encoder_layers else 1
    given = config | dict(num_transformer_submodules=stacks(config, arch))
    expects = dict(num_attention_heads=arch.kv, token_dim=arch.kv * arch.dh, num_transformer_submodules=both)
    for name, expected in expects.items():
        if (found := given.get(name)) not in (None, expected):
            raise Bad(f"adapter_config.json: {name}: expected {expected}, as this base has, found {found}")
    blocks = config.get("num_layers") or arch.encoder_layers or arch.layers
    if blocks < arch.layers:
        raise Bad(
            f"adapter_config.json: num_layers: expected at least {arch.layers}, a prefix for every block, found {blocks}"
        )
    return dict(window="past", layout="peft" if both == 2 else "ordered", blocks=0 if blocks == arch.layers else blocks)


def writes(m: Any, arch: Arch) -> Config:
    blocks = 2 * arch.layers if arch.encoder_layers and m.layout == "ordered" else m.blocks or arch.layers
    return dict(
        token_dim=arch.kv * arch.dh, num_layers=blocks, num_attention_heads=arch.kv,
        num_transformer_submodules=2 if arch.encoder_layers else 1, prefix_projection=False, encoder_hidden_size=arch.d,
    )  # fmt: skip


def as_prefixes(model: Model, adapter: Adapter) -> Adapter:
    """The projection, folded in, in PEFT's layout. Raises `Bad` where PEFT computes something else."""
    method: Any = adapter.method
    arch = model.arch
    own = [s for s, m in adapter.at.items() if m.name == method.name]
    if own != (expected := [f"layers.{n}.attn.kv" for n in range(arch.layers)]):
        raise Bad(f"{method.name}: PEFT has prefixes at {', '.join(expected)} alone, found {', '.join(own)}")
    if any(arch.window_of(n) for n in range(arch.layers)) and method.window == "all":
        raise Bad(f"{method.name}: window='all' is not what PEFT computes with a sliding window; expected 'past'")
    if method.positions == "zero" and arch.positions != "relative":
        raise Bad(f"{method.name}: positions='zero' is not what PEFT computes; expected 'after'")
    if method.layout == "peft" and not arch.encoder_layers:
        raise Bad(f"{method.name}: layout='peft' is not what PEFT computes without an encoder; expected 'ordered'")
    E = to_host(method.flat(**adapter.grouped()[""]))
    if arch.encoder_layers and method.layout == "ordered":  # there PEFT takes for layer l what stands at 2l
        blocks = E.reshape(len(E), -1, 2 * arch.kv * arch.dh)[:, : arch.layers]
        E = np.stack([blocks, np.zeros_like(blocks)], axis=2).reshape(len(E), -1)
    plain = dataclasses.replace(method, hidden=0, layout="peft" if arch.encoder_layers else "ordered",
                                blocks=E.shape[1] // (2 * arch.kv * arch.dh))  # fmt: skip
    frozen = getattr(method, "frozen", 0)
    parts = {":F": E[:frozen], ":E": E[frozen:]}
    return remade(adapter, plain, dict.fromkeys(own, plain), {k: a for k, a in parts.items() if len(a)})


SPEC = Spec(
    "PREFIX_TUNING",
    KNOWN,
    root_keys={"E": Key("prompt_embeddings", size="(p, 2 layers kv d_h)")},
    settings=dict(p="num_virtual_tokens"),
    reads=reads,
    writes=writes,
    plain=as_prefixes,
    tasked=True,
    on_layer=False,
    trials=(
        Trial("llama", dict(p=3)),
        Trial("gpt2", dict(p=3, hidden=5), name="projected", inexact=NARROW),
        Trial("mistral", dict(p=3, window="past"), name="window"),
        Trial("t5", dict(p=3), name="t5 ordered"),
        Trial("t5gated", dict(p=3, layout="peft", blocks=3), name="t5 unequal"),
        Trial("t5", dict(p=3, layout="peft"), name="t5"),
    ),
)
