"""LN tuning in PEFT: a copy of every norm, whose weight and bias it saves as they are, not what they changed by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minipeft.adapted import Adapted
from minipeft.errors import Bad
from minipeft.interop.peft.fields import COMMON, EXCLUDED, TARGETS, WHOLE, Config
from minipeft.interop.peft.keys import body_of
from minipeft.interop.peft.names import Naming, targeted
from minipeft.interop.peft.reading import load_peft_parts
from minipeft.interop.peft.spec import Key, Spec, Trial
from minipeft.model.arch import Arch
from minipeft.model.base import Model
from minipeft.targets import sites


class Norms(Naming):
    """The names of a base's norms, which stand among no linears and tables."""

    def modules(self) -> dict[str, str]:
        norms = [n.removesuffix(".weight") for n, s in sites(self.model).items() if s.kind == "norm"]
        return {self.theirs(m): f"{m}.weight" for m in norms if self.has(f"{m}.weight")}


def _load(model: Model | Adapted, config: Config, tensors: Mapping[str, Any], folder: Path, name: str) -> Adapted:
    """The general way, but for target_modules: they name norms."""
    others = {k: v for k, v in config.items() if k != "target_modules"}
    adapted = load_peft_parts(model, others, tensors, folder, name)
    naming = Norms.of(adapted.model, map(body_of, tensors))
    wanted, idle = targeted(config, naming) or set(), adapted.adapter(name).options["idle"]
    found = {s for s, m in adapted.adapter(name).at.items() if m.name == "ln_tuning"}
    modules = {site: theirs for theirs, site in naming.modules().items()}
    if lost := [m for site, m in modules.items() if site in wanted - found and m not in idle]:
        raise Bad(f"{folder}: {len(lost)} target modules have no tensors, the first {lost[0]}")
    if more := [m for site, m in modules.items() if site in found - wanted]:
        raise Bad(f"{folder}: {len(more)} modules have tensors and are no target_modules, the first {more[0]}")
    return adapted


def _way(config: Config, arch: Arch) -> Config:
    return dict(load=_load) if config.get("target_modules") else {}


SPEC = Spec(
    "LN_TUNING",
    COMMON | TARGETS | EXCLUDED | WHOLE,
    keys={
        "gamma": Key("ln_tuning_layers.weight", size="(d)"),
        "beta": Key("ln_tuning_layers.bias", size="(d) where the norm has one"),
    },
    settled=_way,
    on_layer=False,
    trials=(
        Trial("llama"),
        Trial("gpt2", attached=dict(targets="ln_1 ln_f"), name="gpt2"),
        Trial("bert-cls", attached=dict(train_whole=["classifier"]), name="on a classifier"),
        Trial("t5", name="t5"),
    ),
)
