"""P-tuning in PEFT: its file holds the prompt that the network made, and is read as prompt tuning."""

from __future__ import annotations

from typing import Any

from minipeft.adapted import Adapter
from minipeft.interop.peft.fields import PROMPT, Config, plain
from minipeft.interop.peft.prompt_tuning import ROWS, pooled, rows, sized
from minipeft.interop.peft.spec import NARROW, Spec, Trial, remade
from minipeft.method import Method, method_class
from minipeft.model.arch import Arch
from minipeft.model.base import Model

MADE = "the file has the prompt that the network made"
KNOWN = PROMPT | {
    "encoder_reparameterization_type": plain(MADE, "MLP"),
    "encoder_hidden_size": plain(MADE),
    "encoder_num_layers": plain(MADE, 2),
    "encoder_dropout": plain(MADE, 0.0),
}


def _writes(m: Any, arch: Arch) -> Config:
    return sized(m, arch) | dict(
        num_virtual_tokens=m.p, encoder_reparameterization_type=m.encoder.upper(), encoder_hidden_size=m.hidden or arch.d,
        encoder_num_layers=m.layers, encoder_dropout=m.dropout,
    )  # fmt: skip


def _as_prompt(model: Model, adapter: Adapter) -> Adapter:
    """The network, evaluated: the prompt alone."""
    method: Any = pooled(model, adapter).method
    cls: Any = method_class(SPEC.read_as)
    plain = cls(targets=method.targets, p=method.p, pool=method.pool, ignores=method.ignores)
    at: dict[str, Method] = {site: plain for site, m in adapter.at.items() if m.name == method.name}
    own = adapter.grouped()
    return remade(adapter, plain, at, {f"{site}:P": method.prompt(None, **own[site]) for site in at})


SPEC = Spec(
    "P_TUNING",
    KNOWN,
    root_keys=ROWS,
    writes=_writes,
    settled=rows,
    read_as="prompt_tuning",
    plain=_as_prompt,
    tasked=True,
    embeds=True,
    on_layer=False,
    trials=(
        Trial("gpt2", dict(p=3, hidden=5, encoder="mlp"), name="mlp", inexact=NARROW),
        Trial("llama", dict(p=3, hidden=5), name="lstm", inexact=NARROW),
    ),
)
