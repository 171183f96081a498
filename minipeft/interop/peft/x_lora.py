"""X-LoRA in PEFT: the classifier in a folder, and each expert, a LoRA, in a sub-folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.attaching import attach
from minipeft.engine.backend import to_host
from minipeft.errors import Bad, near
from minipeft.interop.peft.fields import (
    COMMON,
    COUNT,
    FLAG,
    NUMBER,
    POSITIVE,
    RATE,
    Config,
    Kind,
    optional,
    read,
    whole,
)
from minipeft.interop.peft.reading import (
    declared_at,
    filled,
    labels,
    load_peft_parts,
    read_adapter_tensors,
    read_config,
    refuse_misfits,
    settings_of,
)
from minipeft.interop.peft.spec import Key, Spec, Trial
from minipeft.interop.peft.writing import save_peft
from minipeft.method import method_class
from minipeft.model.arch import Arch
from minipeft.model.base import Model
from minipeft.shown import shortly

FOLDERS = Kind("a dictionary of folders", lambda v: isinstance(v, dict) and all(isinstance(x, str) for x in v.values()))
EXPERT = "LORA"
KNOWN = COMMON | {
    "hidden_size": read(optional(COUNT)),
    "adapters": read(optional(FOLDERS)),
    "enable_softmax": read(FLAG, True),
    "enable_softmax_topk": read(FLAG, False),
    "layerwise_scalings": read(FLAG, False),
    "xlora_depth": read(whole(1, 1000), 1),
    "xlora_size": read(COUNT, 2048),
    "xlora_dropout_p": read(optional(RATE), 0.2),
    "use_trainable_adapters": read(FLAG, False),
    "softmax_temperature": read(POSITIVE, 1.0),
    "top_k_lora": read(optional(COUNT)),
    "scaling_pass_value": read(NUMBER, 0.0),
    "global_scaling_weight": read(NUMBER, 1.0),
}


def _reads(config: Config, arch: Arch) -> Config:
    if (width := config.get("hidden_size")) not in (None, arch.d):
        raise Bad(f"adapter_config.json: hidden_size: expected {arch.d}, as this base has, found {width}")
    return {}


def _classifier(config: Config, arch: Arch) -> Config:
    """The keys of the classifier, a sequence of linears with ReLU and, if there is any, dropout between them."""
    stride = 3 if config.get("xlora_dropout_p") else 2
    keys = {
        f"{ours}{i}": Key(f"base_model.internal_xlora_classifier.layers.{i * stride}.{theirs}")
        for i in range(config.get("xlora_depth", 1))
        for ours, theirs in (("V", "weight"), ("v", "bias"))
    }
    return dict(root_keys=keys)


def _holds(folder: Path, place: str) -> bool:
    """Whether an expert is at a place that is named, and the place inside of the folder, whatever links there are."""
    try:
        inside = (folder / place).resolve().is_relative_to(folder.resolve())
        return inside and (folder / place / "adapter_config.json").exists()
    except (OSError, ValueError, RuntimeError):  # no name of a file, or a link to itself
        return False


def _load(
    model: Model | Adapted, config: Config, tensors: Mapping[str, np.ndarray], folder: Path, name: str
) -> Adapted:
    """The classifier, and the experts in sub-folders, named after them or where the configuration says."""
    adapted = model if isinstance(model, Adapted) else Adapted(model)
    arch = adapted.model.arch
    cls: Any = method_class("x_lora")
    experts = []
    taken: dict[Path, str] = {}
    for k, (key, place) in enumerate((config.get("adapters") or {}).items()):
        where = next((p for p in (place, key, str(k)) if _holds(folder, p)), None)
        if where is None:
            told = f"{folder / shortly(key)[1:-1]} nor in {shortly(place)[1:-1]}"
            raise Bad(
                f"{folder}: expert {shortly(key)} of the XLORA adapter is neither in {told}, inside of the folder"
            )
        where = folder / where
        if (other := taken.setdefault(where.resolve(), key)) != key:
            raise Bad(f"{folder}: experts {other!r} and {key!r} of the XLORA adapter are in one folder, {where}")
        own: dict[str, Any] = {}
        for full, a in read_adapter_tensors(where).items():
            if ".lora_" in (body := full.removeprefix("base_model.").removeprefix("lora_model.")):
                if "base_model." + body in own:
                    raise Bad(f"{where}: {full} is there twice, under two names")
                own["base_model." + body] = a  # PEFT's copies hold the base and the classifier as well
        expert = read_config(where)
        if expert["peft_type"] != EXPERT:
            raise Bad(f"{where}: an expert of an XLORA adapter: expected {EXPERT}, found {expert['peft_type']}")
        expert |= dict(task_type=None, modules_to_save=None, bias="none")  # PEFT takes an expert's factors alone
        experts.append(load_peft_parts(adapted.model, expert, own, where).adapters[0])
    if not experts:
        raise Bad(f"{folder / 'adapter_config.json'}: an XLORA adapter needs adapters, its experts")
    settings = settings_of(SPEC, config, arch, folder)
    method = cls.from_adapters(experts, **settings)
    config = config | SPEC.write(method, arch)
    spec = SPEC.of(config, arch)
    names = {k.suffix: n for n, k in spec.root_keys.items()}
    if strange := sorted(set(tensors) - set(names)):
        raise Bad(f"{folder}: unexpected key {strange[0]!r} in an XLORA adapter{near(strange[0], names, 1)}")
    new = {f":{names[k]}": a for k, a in tensors.items()}
    shared = {k: it for k, it in declared_at(adapted.model, method, method.targets, {}).items() if k.startswith(":")}
    label, needed = labels(spec, {}, {}), {k for k, it in shared.items() if it.trained}
    refuse_misfits(folder, label, new, {k: it.shape for k, it in shared.items()}, needed)
    adapted = attach(adapted, method, name=name)
    new |= {k: to_host(a) for k, a in adapted.adapter(name).arrays.items() if not k.startswith(":")}  # the experts'
    return filled(adapted, name, new, folder, spec, {}, dict(bias="none", train_whole=[], peft=config))


def _folders(adapter: Adapter, modules: Mapping[str, str], folder: Any) -> Config:
    return dict(adapters={str(k): str(folder / str(k)) for k in range(len(adapter.method.experts))})  # type: ignore[attr-defined]


def _save(adapted: Adapted, adapter: Adapter, folder: Any) -> None:
    for k, expert in enumerate(adapter.method.experts):  # type: ignore[attr-defined]
        own = {s: expert for s in adapter.at if f"{s}:A{k}" in adapter.arrays}
        arrays = {f"{s}:{n}": adapter.arrays[f"{s}:{n}{k}"] for s in own for n in "AB"}
        alone = Adapter("expert", expert, own, arrays, frozenset(arrays))
        save_peft(Adapted(adapted.model, (alone,)), folder / str(k))


SPEC = Spec(
    "XLORA",
    KNOWN,
    settings=dict(
        layerwise="layerwise_scalings", depth="xlora_depth", hidden="xlora_size", dropout="xlora_dropout_p", softmax="enable_softmax",
        temperature="softmax_temperature", top_k="top_k_lora", top_k_softmax="enable_softmax_topk", pass_value="scaling_pass_value",
        gamma="global_scaling_weight", train_experts="use_trainable_adapters",
    ),
    reads=_reads,
    writes=lambda m, arch: dict(hidden_size=arch.d, top_k_lora=m.top_k or None),
    of_adapter=_folders,
    settled=_classifier,
    load=_load,
    save=_save,
    tasked=True,
    on_layer=False,

    trials=(
        Trial("llama", dict(depth=2, hidden=6, dropout=0.1, layerwise=True, top_k=2)),
    ),
)  # fmt: skip
