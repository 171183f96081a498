"""target_parameters: what PEFT adapts by the name of a parameter, not of its module.

A matrix P of shape (n, m) becomes P + s B A with A (r, m) and B (n, r), however its module uses it: of a linear this is the
module's own change, of a table the same with the factors the other way round, and of a weight that is stored as (in, out) they
change places. So each is one of our sites. Where exclude_modules and layers_to_transform say which modules, they say nothing of
parameters; the keys of rank_pattern and alpha_pattern end the parameter's name.
Source: PEFT 0.21, tuners/tuners_utils.py (_inject_parameters) and tuners/lora/layer.py (ParamWrapper).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import numpy as np

from minipeft.checkpoints import their_layout
from minipeft.errors import Bad, near
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.names import HERE, Naming, targeted
from minipeft.interop.peft.spec import Key, Keys, Spec, turned
from minipeft.model.base import Model
from minipeft.model.parts import TABLE
from minipeft.targets import sites

TURNED = {"A": Key("lora_B.weight", turned, turned), "B": Key("lora_A.weight", turned, turned)}


def with_parameters(spec: Spec, model: Model, names: Iterable[str]) -> Spec:
    """The same for an adapter with these of our sites as parameters."""

    def keys(site: str) -> Keys:
        stored_turned = model.names.is_transposed(site.removesuffix(".weight"))
        return TURNED if stored_turned else {name: spec.keys[name] for name in TURNED}

    return dataclasses.replace(spec, parameters={site: keys(site) for site in names})


def targeted_parameters(config: Config, naming: Naming) -> list[str]:
    """Our sites that target_parameters names, in the base's order. Raises `Bad` for a name that is none of a matrix of this base,

    and for what target_modules names too.
    """
    wanted = config.get("target_parameters") or ()
    if not wanted:
        return []
    model, here = naming.model, f"{HERE}: target_parameters:"
    every = sites(model)
    theirs = {name: key for name, s in every.items() if s.kind != "activation" and (key := naming.parameter(name))}
    found: dict[str, str] = {}
    for given in wanted:
        meant = [name for name, key in theirs.items() if key == given or key.endswith(f".{given}")]
        if not meant:
            known = dict.fromkeys(
                re.sub(r".*\.\d+\.", "", key) for name, key in theirs.items() if len(every[name].shape) == 2
            )
            raise Bad(
                f"{here} {given!r} names nothing in this {model.arch.family} base{near(given, known)}; its matrices are "
                f"{', '.join(known)}"
            )
        for name in meant:
            shape = their_layout(model.names, name, np.broadcast_to(False, every[name].shape), model.arch).shape
            if len(shape) != 2:
                raise Bad(f"{here} {given!r}: expected a matrix, found {theirs[name]} of shape {tuple(shape)}")
            found[name] = given
    if model.arch.encoder_layers and TABLE in found:
        raise Bad(f"{here} {found[TABLE]!r}: in transformers the stacks look tokens up in tables of their own")
    if both := [name for name in found if name in (targeted(config, naming) or ())]:
        raise Bad(f"{here} {found[both[0]]!r} is in a module that target_modules names too, {theirs[both[0]]}")
    return [name for name in every if name in found]
