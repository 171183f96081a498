"""Arrow in PEFT: a router's configuration, and each expert, a LoRA, in a folder beside it or below."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.attaching import attach
from minipeft.checkpoints.files import read_json, write_json
from minipeft.errors import Bad
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.lora import TUNER, written
from minipeft.interop.peft.reading import load_peft_parts, read_adapter_tensors, read_config
from minipeft.interop.peft.writing import save_peft
from minipeft.method import method_class
from minipeft.model.arch import Arch
from minipeft.model.base import Model
from minipeft.shown import shortly

TASK = "task_"


def _writes(m: Any, arch: Arch) -> Config:
    if len({e.r for e in m.experts}) > 1:
        raise Bad(
            f"{m.name} cannot be written for PEFT: its experts have one rank there, found {[e.r for e in m.experts]}"
        )
    own = dict(top_k=m.top_k, router_temperature=m.temperature, use_gks=False, gks_adapter_names=[])
    own |= dict(task_adapter_names=[f"{TASK}{k}" for k in range(len(m.experts))])
    first = m.experts[0]  # the router's own rank and scale mean nothing
    own |= dict(rng_seed=m.seed if m.v == "power" else None)
    return written(m, arch, arrow_config=own, r=first.r, lora_alpha=first.alpha)


def _expert(model: Model, folder: Path, name: str) -> Adapter:
    """A LoRA of the library, in the folder of this name below the router's or beside it."""
    if Path(name).name != name or name == "..":
        raise Bad(f"{folder}: expert {shortly(name)} of an Arrow router: expected the name of a folder")
    for where in (folder / name, folder.parent / name):
        if (where / "adapter_config.json").exists():
            config = read_config(where)
            if config["peft_type"] != "LORA" or config.get("arrow_config") is not None:
                raise Bad(f"{where}: an expert of an Arrow router: expected LORA, found another kind")
            return load_peft_parts(model, config, read_adapter_tensors(where), where).adapters[0]
    raise Bad(f"{folder}: expert {shortly(name)} of the Arrow router is neither there nor beside it")


def _load(
    model: Model | Adapted, config: Config, tensors: Mapping[str, np.ndarray], folder: Path, name: str
) -> Adapted:
    """The library that the configuration names; the router's own factors mean nothing."""
    adapted = model if isinstance(model, Adapted) else Adapted(model)
    own = config["arrow_config"]
    if strange := [k for k in tensors if not k.endswith(("lora_A.weight", "lora_B.weight"))]:
        raise Bad(f"{folder}: unexpected key {strange[0]!r} in an Arrow router")
    library, general = (
        [_expert(adapted.model, Path(folder), n) for n in own.get(f"{kind}_adapter_names") or ()]
        for kind in ("task", "gks")
    )
    if not library:
        raise Bad(f"{folder / 'adapter_config.json'}: arrow_config needs task_adapter_names, its experts")
    seed = own.get("rng_seed")
    settings = dict(
        top_k=own.get("top_k", 3),
        temperature=own.get("router_temperature", 1.0),
        dropout=config.get("lora_dropout") or 0.0,
        **({} if seed is None else dict(v="power", seed=seed)),
    )
    cls: Any = method_class("arrow")
    method = cls.from_adapters(library, general if own.get("use_gks") else (), **settings)
    return attach(adapted, method, name=name)


def _alone(model: Model, adapter: Adapter) -> Adapter:
    """Raises `Bad` for what is trained beside the experts, which a file of them has no place for."""
    if more := {m.name for m in adapter.at.values()} - {adapter.method.name}:
        raise Bad(f"{adapter.method.name} cannot be written for PEFT with {', '.join(sorted(more))} beside it")
    return adapter


def _save(adapted: Adapted, adapter: Adapter, folder: Any) -> None:
    for k, expert in enumerate(adapter.method.experts):  # type: ignore[attr-defined]
        arrays = {f"{s}:{n}": adapter.arrays[f"{s}:{n}{k}"] for s in adapter.at for n in "AB"}
        alone = Adapter("expert", expert, dict.fromkeys(adapter.at, expert), arrays, frozenset(arrays))
        save_peft(Adapted(adapted.model, (alone,)), folder / f"{TASK}{k}")
    targets = read_json(folder / f"{TASK}0" / "adapter_config.json")["target_modules"]
    config = read_json(folder / "adapter_config.json") | dict(target_modules=targets)
    write_json(folder / "adapter_config.json", config)


SPEC = dataclasses.replace(
    TUNER,
    keys={},
    embedding_keys=None,
    settings=dict(dropout="lora_dropout"),
    writes=_writes,
    patterns={},
    claims=lambda config: config.get("arrow_config") is not None,
    plain=_alone,
    load=_load,
    save=_save,
    on_layer=False,
    readings=dict(v="power"),
    notes="each expert is a LoRA in a folder of its own, `task_0`, …; the router has factors that mean nothing",
)
