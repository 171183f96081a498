"""Adapters of Hugging Face PEFT, read: adapter_config.json and adapter_model.safetensors.

What stands where says the file of each method in this folder. Module names go through the bijection of the base's family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints.files import existing, read_json, read_tensors
from minipeft.drawing import expected, wrong_in
from minipeft.engine.backend import read_only, to_device
from minipeft.errors import Bad, near
from minipeft.interop.peft.base import with_brought_base, with_fitting_head
from minipeft.interop.peft.config import checked
from minipeft.interop.peft.declared import refuse_absent
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.keys import ROOT, TOKENS, WHOLE, body_of, module_of, sorted_keys
from minipeft.interop.peft.names import Naming, targeted
from minipeft.interop.peft.registry import method_name, spec_of
from minipeft.interop.peft.spec import Spec
from minipeft.method import Method, method_class
from minipeft.model.arch import Arch
from minipeft.model.base import Model
from minipeft.targets import sites


def read_config(folder: str | Path) -> Config:
    """adapter_config.json of a folder, checked field by field and complete (`minipeft.interop.peft.config`)."""
    folder = existing(folder, "folder")
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict):
        raise Bad(f"{folder / 'adapter_config.json'}: expected an object, found {type(config).__name__}")
    return checked(config, folder / "adapter_config.json")


def read_adapter_tensors(folder: str | Path) -> dict[str, np.ndarray]:
    """The tensors of adapter_model.safetensors; refuses the pickle adapter_model.bin."""
    folder = Path(folder)
    file = folder / "adapter_model.safetensors"
    if not file.exists() and (folder / "adapter_model.bin").exists():
        raise Bad(
            f"{folder / 'adapter_model.bin'}: a pickle can run any code when it is read; save the adapter as safetensors"
        )
    return read_tensors(file)


def load_peft(model: Model | Adapted, folder: str | Path, name: str = "default") -> Adapted:
    """Attach an adapter that PEFT saved. Arrays take the model's dtype.

    Raises `Bad`, in one line, for an unknown peft_type, an adapter of another base, and keys that are missing,
    unexpected, misshaped or transposed.
    """
    folder = Path(folder)
    return load_peft_parts(model, read_config(folder), read_adapter_tensors(folder), folder, name)


def load_peft_parts(
    model: Model | Adapted, config: Config, tensors: Mapping[str, np.ndarray], folder: Path, name: str = "default"
) -> Adapted:
    """`load_peft` of a configuration and tensors that were read already."""
    adapted = model if isinstance(model, Adapted) else Adapted(model)
    cls = method_class(method_name(config))
    spec = spec_of(cls).of(config, adapted.model.arch)
    if spec.load:
        return spec.load(model, config, tensors, folder, name)
    base = with_fitting_head(adapted.model, config, tensors, folder)
    naming = Naming.of(base, (body_of(key) for key in tensors))
    parts = sorted_keys(naming, spec, config, tensors, folder)
    base, brought = with_brought_base(base, parts, folder)
    brought += [n for n in parts.base if n not in adapted.model.params and n not in {*parts.whole, *brought}]
    naming = dataclasses.replace(naming, model=base)
    if base is not adapted.model:
        if adapted.adapters:
            raise Bad(f"{folder}: this adapter brings parts of its base; attach it before the others")
        adapted = Adapted(base)
    settings = settings_of(spec, config, base.arch, folder)
    every = sites(base)
    found = {site: parts.at[site] for site in every if site in parts.at}  # in the model's order, whatever the file's
    modules = {site: module_of(naming, spec, site) for site in found}
    per_site = {site: spec.read_at(config, modules[site], arrays) for site, arrays in found.items()}
    for site, arrays in [*found.items(), ("", parts.shared)]:
        for size in spec.sizes:
            refuse_huge(folder, size, per_site.get(site, {}).get(size, settings.get(size)), arrays)
    method = cls(**settings)
    if not spec.on_blocks and found:
        _same_targets(naming, config, spec, found, parts.idle_sites(naming, "whole", "adapted"), folder)
    if parts.rows and not isinstance(config.get("trainable_token_indices"), (list, dict)):
        raise Bad(f"{folder / 'adapter_config.json'}: tensors of trained tokens need trainable_token_indices")
    full: Any = method_class(WHOLE)
    beside = [_rows(naming, config, site) for site in every if site in parts.rows]
    refuse_absent(folder, spec, config, naming, found, parts)
    beside += [full(targets=" ".join(parts.whole), head="stays")] if parts.whole else []
    if not found and not parts.shared:
        raise Bad(f"{folder}: adapter_model.safetensors holds no {spec.peft_type} tensors")
    targets = list(found) or method.targets
    if spec.on_blocks:
        targets = [*found, *(f"{site.removesuffix('heads')}o.out" for site in found)]
    adapted = attach(adapted, method, name=name, targets=targets, patterns=per_site, beside=beside, bias="none")
    new: dict[str, Any] = {f"{site}:{k}": v for site, arrays in found.items() for k, v in arrays.items()}
    new |= {f"{site}:W1": v for site, v in parts.whole.items()}
    held = adapted.adapter(name).arrays
    new |= {next((full for full in held if full.endswith(f":{k}")), f":{k}"): v for k, v in parts.shared.items()}
    new |= {f"{site}:T": v for site, v in parts.rows.items()}
    options = dict(bias=_bias_option(config), train_whole=[], brought=brought, idle=parts.idle, peft=dict(config))
    return filled(adapted, name, new, folder, spec, modules, options, parts.spare)


def _same_targets(
    naming: Naming, config: Config, spec: Spec, found: Mapping[str, Any], idle: Collection[str], folder: Path
) -> None:
    """Raises `Bad` where the sites that target_modules names are not those that have tensors."""
    wanted = targeted(config, naming)
    if wanted is None:
        return
    every = sites(naming.model)
    if lost := [s for s in every if s in wanted and s not in found and s not in idle]:
        keys = [k.suffix for n, k in spec.keys_of(every[lost[0]].kind).items() if n in next(iter(found.values()))]
        first = naming.theirs(lost[0].removesuffix(".weight"))
        raise Bad(
            f"{folder}: {len(lost)} target modules have no tensors, the first {first}: {', '.join(keys) or 'its keys'} missing"
        )
    if more := [s for s in found if s not in wanted]:
        first = naming.theirs(more[0].removesuffix(".weight"))
        raise Bad(f"{folder}: {len(more)} modules have tensors and are no target_modules, the first {first}")


def refuse_huge(folder: Path, size: str, declared: Any, arrays: Mapping[str, Any]) -> None:
    """A size that no axis of the file's arrays has is refused before anything of that size is made."""
    longest = max((n for a in arrays.values() for n in a.shape), default=0)
    if (
        arrays and declared is not None and declared > max(longest, 1024)
    ):  # smaller ones cost nothing, and are told better below
        raise Bad(
            f"{folder}: {size} is {declared} by adapter_config.json, but no axis of the file's arrays is longer than {longest}"
        )


def settings_of(spec: Spec, config: Config, arch: Arch, folder: Path) -> Config:
    """Our settings, of their configuration. Raises `Bad` for a field that is not there."""
    try:
        return spec.read(config, arch)
    except KeyError as why:
        raise Bad(f"{folder / 'adapter_config.json'}: a {spec.peft_type} adapter needs {why.args[0]!r}") from None


def _rows(naming: Naming, config: Config, site: str) -> Method:
    """Trained tokens beside another method; their configuration gives a list, or a list for each module."""
    given = config["trainable_token_indices"]
    if isinstance(given, dict):
        module = naming.theirs(site.removesuffix(".weight"))
        named = [v for k, v in given.items() if module.endswith(k)]
        if not named:
            raise Bad(f"adapter_config.json: trainable_token_indices has no tokens for {module}{near(module, given)}")
        given = named[0]
    rows: Any = method_class(TOKENS)
    return rows(tokens=tuple(given), head_bias="drop", targets=site)


def _bias_option(config: Config) -> str:
    bias = config.get("bias") or "none"
    return bias if bias in ("none", "all") else "adapted"


def filled(
    adapted: Adapted,
    name: str,
    new: Mapping[str, Any],
    folder: Path,
    spec: Spec,
    modules: Mapping[str, str],
    options: Config,
    spare: Mapping[str, Any] | None = None,
) -> Adapted:
    """The adapter with its arrays replaced by those of a file, every trained one of which must be there and fit."""
    adapter = adapted.adapter(name)
    dtype = adapted.model.dtype
    every = sites(adapted.model)

    def label(key: str) -> str:
        site, _, array = key.rpartition(":")
        if site in modules and array in (keys := spec.keys_of(every[site].kind)):
            return f"{ROOT}{modules[site]}.{keys[array].suffix}"
        return f"{site}:{array}" if site else spec.root_keys[array].suffix if array in spec.root_keys else array

    stored = {
        k for k in adapter.arrays if (s := k.rpartition(":"))[0] in modules and s[2] in spec.keys_of(every[s[0]].kind)
    }
    if lost := sorted((adapter.trained | stored) - set(new)):
        raise Bad(
            f"{folder}: adapter_model.safetensors lacks {label(lost[0])}"
            + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")
        )
    if odd := sorted(set(new) - set(adapter.arrays)):
        raise Bad(f"{folder}: unexpected tensor {label(odd[0])} for this configuration")
    arrays = dict(adapter.arrays)
    for key, a in sorted(new.items()):
        shape = tuple(arrays[key].shape)
        if tuple(a.shape) != shape:
            turned = "; it looks transposed" if tuple(a.shape[::-1]) == shape else ""
            raise Bad(
                f"{folder}: {label(key)} as {key.rpartition(':')[2]}: expected shape {shape}, found {tuple(a.shape)}{turned}"
            )
    own = adapter.grouped({**arrays, **new})
    for key, it in expected(adapter.method, adapter.at, every):
        if key in new and (wrong := wrong_in(it, new[key], own[key.rpartition(":")[0]])):
            raise Bad(f"{folder}: {label(key)}: {wrong}")
    for key, a in sorted(new.items()):
        held = to_device(np.ascontiguousarray(a).astype(dtype if a.dtype.kind == "f" else a.dtype))
        arrays[key] = held if key in adapter.trained else read_only(held)
    trained = frozenset(k for k in adapter.trained if k.rpartition(":")[2] not in spec.fixed)
    options = {**options, "fixed": list(spec.fixed)} if spec.fixed else options
    filled = dataclasses.replace(adapter, arrays=arrays, trained=trained, options=options, spare=dict(spare or {}))
    kept = tuple(filled if a.name == name else a for a in adapted.adapters)
    return dataclasses.replace(adapted, adapters=kept)
