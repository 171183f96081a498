"""What PEFT takes out of the base before anything is trained.

A start is what an adapter begins with, a variant what it computes. Some are taken out of the base: PEFT writes what is left over
the base's own weight, each time that an adapter is made or read. Where our method holds that part beside the base
(`Spec.holds`), the base stays as it is. Elsewhere, under another variant or where several modules share a weight, the base of
what is read is the one that PEFT leaves.
Source: PEFT 0.21, tuners/lora/layer.py (update_layer) and tuners/tuners_utils.py (inject_adapter).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np

from minipeft.engine.factors import finite
from minipeft.engine.weight import widened
from minipeft.errors import Bad
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.keys import body_of, param_of
from minipeft.interop.peft.names import Naming, targeted
from minipeft.interop.peft.parameters import targeted_parameters
from minipeft.interop.peft.registry import method_name, specs
from minipeft.interop.peft.spec import LEFT, Spec
from minipeft.method import Method
from minipeft.model.parts import PATCHES, TABLE, tied
from minipeft.model.replicated import original
from minipeft.targets import sites


def _takers(config: Config) -> list[Spec]:
    """What takes something out of the base under a configuration, in the order in which it does."""
    own = [s for s in specs().values() if s.peft_type == config["peft_type"] and s.leaves and s.takes(config)]
    return sorted(own, key=lambda s: s.takes_last)


def marked(config: Config, naming: Naming, tensors: Iterable[str]) -> Config:
    """A configuration, marked where its base is read as PEFT leaves it, and not as it is."""
    if not _takers(config) or (
        specs()[method_name(config)].holds(config, naming) and not _shared(config, naming, tensors)
    ):
        return config
    return config | {LEFT: True}


def _shared(config: Config, naming: Naming, tensors: Iterable[str]) -> bool:
    """Whether a weight that is changed is that of several modules, a token table or a layer that stands twice; or in the file, as it became."""
    model = naming.model
    if len(set(model.origin)) < len(model.origin):
        return True
    own = {*(targeted(config, naming) or ()), *targeted_parameters(config, naming)}
    own |= tied(model.arch).keys() if config.get("ensure_weight_tying") and TABLE in own else set()
    table = TABLE in own and bool(config.get("target_parameters"))
    return table or bool(own & {*tied(model.arch), *(param_of(naming, body_of(key))[0] for key in tensors)})


def refuse_moved(config: Config, naming: Naming) -> None:
    """Raises `Bad` where PEFT would take it out of a weight that several modules share, and leave each of them otherwise."""
    if _takers(config) and _shared(config, naming, ()):
        start = config.get("init_lora_weights")
        what = f"init_lora_weights={start!r}" if isinstance(start, str) else "kasa_config"
        raise Bad(
            f"{what}: PEFT takes it out of the base, and out of a weight that several modules share here; merge the adapter"
        )


def left(
    config: Config, naming: Naming, at: Mapping[str, Method], parameters: Container[str], given: Container[str]
) -> dict[str, Any]:
    """The base's parameters that PEFT leaves otherwise under the methods at these sites, some of them as parameters.

    Those that are `given` by a file are as they became. A weight of several modules is changed by each in turn. Raises `Bad` where
    PEFT has no such factors.
    """
    if not config.get(LEFT):
        return {}
    model, every = naming.model, sites(naming.model)
    found: dict[str, np.ndarray] = {}
    last = tied(model.arch) if config.get("ensure_weight_tying") else {}
    for site in sorted(at, key=lambda s: (s in last, s in parameters)):  # PEFT's order
        name = original(model, tied(model.arch).get(site, site))
        if name in given or (every[site].kind != "linear" and site not in parameters):
            continue  # a table begins as usual
        if site == PATCHES:
            raise Bad(f"adapter_config.json: {config['peft_type']} at {site}: PEFT takes nothing out of a convolution")
        if name not in found:
            holder = next(n for n in model.params if original(model, n) == name)
            found[name] = finite(site, widened(model.params[holder]))
        stored_turned = model.names.is_transposed(site.removesuffix(".weight"))
        W = found[name].T if stored_turned else found[name]
        for spec in _takers(config):
            W = spec.leaves(config, W, at[site], every[site], stored_turned and site not in parameters)  # type: ignore[misc]
        found[name] = W.T if stored_turned else W
    return {n: found[key] for n in model.params if (key := original(model, n)) in found}
