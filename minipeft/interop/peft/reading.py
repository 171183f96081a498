"""Adapters of Hugging Face PEFT, read: adapter_config.json and adapter_model.safetensors.

What stands where says the file of each method in this folder. Module names go through the bijection of the base's family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.arrays import held_for
from minipeft.attaching import attach
from minipeft.checkpoints.files import existing, read_json, read_tensors
from minipeft.drawing import Facts, There, expected, there, wrong_in
from minipeft.engine.backend import read_only, to_device, to_host
from minipeft.engine.factors import finite
from minipeft.engine.weight import again
from minipeft.errors import Bad, near
from minipeft.interop.peft.base import with_brought_base, with_fitting_head, with_repeated_layers
from minipeft.interop.peft.config import checked
from minipeft.interop.peft.declared import refuse_absent
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.keys import HEAD, TABLE, TOKENS, WHOLE, body_of, module_of, sorted_keys
from minipeft.interop.peft.names import HERE, Naming, targeted, unwrapped
from minipeft.interop.peft.parameters import targeted_parameters, with_parameters
from minipeft.interop.peft.registry import method_name, seen, spec_of
from minipeft.interop.peft.spec import LEFT, ROOT, Spec
from minipeft.interop.peft.starts import left, marked
from minipeft.method import Method, method_class, refuse_unfit
from minipeft.model.arch import Arch
from minipeft.model.base import Model
from minipeft.model.parts import tied
from minipeft.targets import select, sites

SOME = 5  # folders that a message names


def read_config(folder: str | Path) -> Config:
    """adapter_config.json of a folder, checked field by field and complete (`minipeft.interop.peft.config`)."""
    folder = existing(folder, "folder")
    if not (folder / "adapter_config.json").exists() and (inside := sorted(folder.glob("*/adapter_config.json"))):
        names = ", ".join(file.parent.name for file in inside[:SOME])
        more = f" and {len(inside) - SOME} more" if len(inside) > SOME else ""
        raise Bad(f"{folder}: expected one adapter, found folders of {len(inside)}: {names}{more}; give one of them")
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
    adapted = with_repeated_layers(model if isinstance(model, Adapted) else Adapted(model), config, folder)
    method_name(config)  # raises `Bad` for what PEFT does not take
    naming = Naming.of(adapted.model, map(body_of, tensors))
    config = marked(seen(config, naming, tensors), naming, tensors)
    cls = method_class(method_name(config))
    spec = spec_of(cls).of(config, adapted.model.arch)
    tensors = spec.common.ours(tensors)
    refuse_odd(folder, spec, tensors, adapted.model)
    if spec.load:
        return spec.load(adapted, config, tensors, folder, name)
    base = with_fitting_head(adapted.model, config, {body_of(k, spec.root): a for k, a in tensors.items()}, folder)
    naming = Naming.of(base, (body_of(key, spec.root) for key in tensors))
    spec = with_parameters(spec, base, targeted_parameters(config, naming))
    parts = sorted_keys(naming, spec, config, tensors, folder)
    base, brought = with_brought_base(base, parts, folder)
    brought += [n for n in parts.base if n not in adapted.model.params and n not in {*parts.whole, *brought}]
    naming = dataclasses.replace(naming, model=base)
    if base is not adapted.model:
        if adapted.adapters:
            raise Bad(f"{folder}: this adapter brings parts of its base; attach it before the others")
        adapted = Adapted(base)
    settings = settings_of(spec, config, base.arch, folder) | spec.told(config, base.arch, parts.shared)
    every = sites(base)
    there = parts.at if spec.keys else {site: {} for site in targeted(config, naming) or ()}  # where it may have none
    found = {site: there[site] for site in every if site in there}  # in the model's order, whatever the file's
    modules = {site: module_of(naming, spec, site) for site in found}
    per_site = spec.read_at(config, modules, found)
    if parts.tied:
        module = module_of(naming, spec, HEAD)
        if spec.read_at(config, {HEAD: module}, {HEAD: found[TABLE]})[HEAD] != per_site[TABLE]:
            raise Bad(
                f"{folder / HERE}: ensure_weight_tying: {modules[TABLE]} and {module} differ in rank_pattern or alpha_pattern"
            )
    method = cls(**settings)
    if not spec.on_blocks and found:
        idle = parts.idle_sites(naming, "whole", "adapted") | ({HEAD} if parts.tied else set())
        _same_targets(naming, config, spec, method, found, idle, folder)
    if parts.rows and not isinstance(config.get("trainable_token_indices"), (list, dict)):
        raise Bad(f"{folder / 'adapter_config.json'}: tensors of trained tokens need trainable_token_indices")
    full: Any = method_class(WHOLE)
    beside = [_rows(naming, config, site) for site in every if site in parts.rows]
    refuse_absent(folder, spec, config, naming, found, parts)
    head = "stays" if parts.head is None else "follows"
    beside += [full(targets=" ".join(parts.whole), head=head)] if parts.whole else []
    left_out = "adapted" in parts.idle.values()
    if not found and not parts.shared and not left_out:
        raise Bad(f"{folder}: adapter_model.safetensors holds no {spec.peft_type} tensors")
    targets: Any = [*spec.also, *found] if found else () if left_out else method.targets
    if spec.on_blocks:
        targets = [*found, *(f"{site.removesuffix('heads')}o.out" for site in found)]
    own: dict[str, Any] = {f"{site}:{k}": v for site, arrays in found.items() for k, v in arrays.items()}
    at = _methods_at(base, method, targets, per_site)
    arrays = dict(expected(method, at, every))
    own = _held_once(folder, labels(spec, every, modules), held_for(method, at), own)
    own |= {next((full for full in arrays if full.endswith(f":{k}")), f":{k}"): v for k, v in parts.shared.items()}
    there_are = {k: it.shape for k, it in arrays.items()}
    needed = {k for k, it in arrays.items() if it.trained and (k in own or k.partition(":")[0] in found)}
    needed |= {f":{k}" for k in spec.root_keys} if spec.keeps(config) else set()
    if spec.packing is None:
        refuse_misfits(folder, labels(spec, every, modules), own, there_are, needed)
    refuse_vague(str(folder), spec, {site: at[site] for site in found}, base)
    leaves = left(config, naming, {site: at[site] for site in found}, spec.parameters, parts.base)
    adapted = _over(adapted, leaves, folder)
    adapted = attach(adapted, method, name=name, targets=targets, patterns=per_site, beside=beside, tie=parts.tied)
    if spec.packing is not None:
        held = held_for(method, at)
        own = _unpacked(folder, spec, modules, adapted, name, held, found)
        own = _held_once(folder, labels(spec, every, modules), held, own)
    new = own | {f"{site}:W1": v for site, v in parts.whole.items()}
    new |= {f"{site}:T": v for site, v in parts.rows.items()}
    options: Config = dict(
        bias=_bias_option(config), train_whole=[], brought=brought, idle=parts.idle, peft=dict(config)
    )
    options |= dict(parameters=list(spec.parameters)) if spec.parameters else {}
    options |= dict(tied=True) if parts.tied else {}
    if config.get(LEFT):
        options |= dict(left=sorted(leaves), began={k: config[k] for k in spec.begins if k in config})
    return filled(adapted, name, new, folder, spec, modules, options, parts.spare)


def refuse_vague(where: str, spec: Spec, at: Mapping[str, Method], model: Model) -> None:
    """Raises `Bad` where PEFT finds something again in the base that is not the same every time."""
    for site, method in at.items() if spec.vague else ():
        if why := spec.vague(method, finite(f"{where}: {site}", _weight(model, site))):  # type: ignore[misc]
            raise Bad(f"{where}: {site}: {why}")


def _over(adapted: Adapted, params: Mapping[str, Any], folder: Path) -> Adapted:
    """The same over a base with these parameters. Raises `Bad` if there are adapters over it as it was."""
    if not params:
        return adapted
    if adapted.adapters:
        raise Bad(f"{folder}: this adapter leaves another base; attach it before the others")
    model = adapted.model
    once: dict[int, Any] = {}  # what is one array stays one
    for n, a in params.items():
        once.setdefault(id(a), again(to_device(np.ascontiguousarray(a).astype(model.dtype)), model.params[n]))
    made = {n: once[id(params[n])] if n in params else W for n, W in model.params.items()}
    return Adapted(dataclasses.replace(model, params=made))


def _weight(model: Model, site: str) -> np.ndarray:
    """The base's weight at a site, on the host; of a tied head the table."""
    return to_host(Adapted(model).run().base(site))


def _unpacked(
    folder: Path, spec: Spec, modules: Mapping[str, str], adapted: Adapted, name: str, held: Mapping[str, Mapping[str, str]],
    found: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Arrays of ours, of the parts that a file has. Raises `Bad` for parts that are not those of the adapter's."""
    assert spec.packing is not None
    own: dict[str, Any] = {}
    there = adapted.adapter(name).grouped()
    for site, parts in found.items():
        lent = {n: there[by[site]][n] for n, by in held.items() if site in by}
        beside = {k: to_host(a) for k, a in (lent | there[site]).items()}
        keys = {f"{site}:{n}": f"{ROOT}{modules[site]}.{k.suffix}" for n, k in spec.keys.items()}
        wanted = {f"{site}:{n}": a for n, a in spec.packing.theirs(beside, beside).items() if n in spec.keys}
        given, shapes = {f"{site}:{n}": a for n, a in parts.items()}, {k: a.shape for k, a in wanted.items()}
        refuse_misfits(folder, keys.__getitem__, given, shapes, wanted)
        beside["W"] = _weight(adapted.model, site)
        own |= {f"{site}:{n}": a for n, a in spec.packing.ours(parts, beside).items()}
    return own


def _same_targets(
    naming: Naming,
    config: Config,
    spec: Spec,
    method: Method,
    found: Mapping[str, Any],
    idle: Collection[str],
    folder: Path,
) -> None:
    """Raises `Bad` where the sites that target_modules names are not those that have tensors; some have none to have."""
    wanted = targeted(config, naming, spec.on_layers)
    if spec.parameters:
        wanted = (wanted or set()) | spec.parameters.keys()
    if wanted is None:
        if "target_modules" in config:
            raise Bad(f"{folder / HERE}: target_modules: expected the modules that have tensors, found none")
        return
    if config.get("ensure_weight_tying"):
        wanted |= tied(naming.model.arch).keys() & found.keys()
    every = sites(naming.model)
    lost = [s for s in every if s in wanted and s not in found and s not in idle and not spec.passes(naming, every[s])]
    if lost := [s for s in lost if any(there(Facts(method, every[s])))]:
        keys = [k.suffix for n, k in spec.keys_of(every[lost[0]]).items() if n in next(iter(found.values()))]
        first = module_of(naming, spec, lost[0])
        raise Bad(
            f"{folder}: {len(lost)} target modules have no tensors, the first {first}: {', '.join(keys) or 'its keys'} missing"
        )
    if more := [s for s in found if s not in wanted]:
        first = module_of(naming, spec, more[0])
        raise Bad(f"{folder}: {len(more)} modules have tensors and are no target_modules, the first {first}")


def refuse_odd(folder: Path, spec: Spec, tensors: Mapping[str, Any], model: Model) -> None:
    """Raises `Bad` for more tensors than an adapter of this base has, for two of one name, and for numbers of another kind."""
    ends = {k.suffix for k in spec.every_key}
    most = len(sites(model)) * (len(ends) + BESIDE) + len(spec.root_keys)
    if len(tensors) > most:
        raise Bad(
            f"{folder}: expected at most {most:,} tensors, which an adapter of this base has, found {len(tensors):,}"
        )
    places = {k.suffix for k in spec.keys.values() if k.row is not None or k.whole}
    plain: dict[str, str] = {}
    for key, a in tensors.items():
        if (other := plain.setdefault(unwrapped(key), key)) != key:
            raise Bad(f"{folder}: {other} and {key} are the same tensor; expected one adapter in a file")
        if key.endswith(tuple(places)):
            if a.dtype.kind != "i" and a.dtype != np.uint8:
                raise Bad(f"{folder}: {key}: expected integers, found {a.dtype}")
        elif a.dtype.kind != "f":
            raise Bad(f"{folder}: {key}: expected floating-point numbers, found {a.dtype}")
        elif not np.isfinite(a).all():
            raise Bad(f"{folder}: {key} has NaN or infinite values")


BESIDE = (
    8  # tensors of a module that are no method's: its weight and bias, as they were and as they are, and trained tokens
)


def declared_at(
    model: Model, method: Method, targets: Any, per_site: Mapping[str, Mapping[str, Any]]
) -> dict[str, There]:
    """The arrays that a method has on a model by its declarations, {"site:name": array}; nothing is drawn."""
    return dict(expected(method, _methods_at(model, method, targets, per_site), sites(model)))


def _methods_at(
    model: Model, method: Method, targets: Any, per_site: Mapping[str, Mapping[str, Any]]
) -> dict[str, Method]:
    """The method as it stands at each of its sites."""
    chosen = {s.name: s for s in select(model, targets)} if targets != () else {}
    at = {name: dataclasses.replace(method, **per_site.get(name, {})) for name in chosen}
    for name, own in at.items():
        refuse_unfit(own, chosen[name])
    return at


def _held_once(
    folder: Path, label: Callable[[str], str], held: Mapping[str, Mapping[str, str]], own: Mapping[str, Any]
) -> dict[str, Any]:
    """A file's arrays, but those that sites share held once: a file has them at every site. Raises `Bad` where they differ."""
    own = dict(own)
    for name, by in held.items():
        for site, holder in by.items():
            here, there = f"{site}:{name}", f"{holder}:{name}"
            if here in own and here != there and not np.array_equal(own[here], own.setdefault(there, own[here])):
                raise Bad(f"{folder}: {label(here)} and {label(there)} differ, which are one, shared by their modules")
            if here != there:
                own.pop(here, None)
    return own


def refuse_misfits(
    folder: Path,
    label: Callable[[str], str],
    new: Mapping[str, Any],
    shapes: Mapping[str, Any],
    needed: Collection[str],
) -> None:
    """Raises `Bad` unless a file's arrays are all that are `needed`, and have these shapes."""
    if lost := sorted(set(needed) - set(new)):
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise Bad(f"{folder}: adapter_model.safetensors lacks {label(lost[0])}{more}")
    if odd := sorted(set(new) - set(shapes)):
        raise Bad(f"{folder}: unexpected tensor {label(odd[0])} for this configuration")
    for key, a in sorted(new.items()):
        expected, found = tuple(shapes[key]), tuple(a.shape)
        if found != expected:
            turned = "; it looks transposed" if found[::-1] == expected else ""
            array = key.rpartition(":")[2]
            raise Bad(f"{folder}: {label(key)} as {array}: expected shape {expected}, found {found}{turned}")


def labels(spec: Spec, every: Mapping[str, Any], modules: Mapping[str, str]) -> Callable[[str], str]:
    """What an array of ours is called in a file."""

    def label(key: str) -> str:
        site, _, array = key.rpartition(":")
        if site in modules and array in (keys := spec.keys_of(every[site])):
            return f"{ROOT}{modules[site]}.{keys[array].suffix}"
        if array in spec.root_keys:
            return spec.root_keys[array].suffix
        return f"{site}:{array}" if site else array

    return label


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

    stored = {k for k in adapter.arrays if (s := k.rpartition(":"))[0] in modules and s[2] in spec.keys_of(every[s[0]])}
    label = labels(spec, every, modules)
    refuse_misfits(folder, label, new, {k: a.shape for k, a in adapter.arrays.items()}, adapter.trained | stored)
    arrays = dict(adapter.arrays)
    own = adapter.grouped({**arrays, **new})
    for key, it in expected(adapter.method, adapter.at, every):
        if key in new and (wrong := wrong_in(it, new[key], own[key.rpartition(":")[0]])):
            raise Bad(f"{folder}: {label(key)}: {wrong}")
    for key, a in sorted(new.items()):
        with np.errstate(over="ignore"):
            a = np.ascontiguousarray(a).astype(dtype if a.dtype.kind == "f" else a.dtype)
        if a.dtype.kind == "f" and not np.isfinite(a).all():
            raise Bad(f"{folder}: {label(key)} has values that are NaN, infinite or beyond the range of {a.dtype}")
        held = to_device(a)
        arrays[key] = held if key in adapter.trained else read_only(held)
    trained = frozenset(k for k in adapter.trained if k.rpartition(":")[2] not in spec.fixed)
    options = {**options, "fixed": list(spec.fixed)} if spec.fixed else options
    filled = dataclasses.replace(adapter, arrays=arrays, trained=trained, options=options, spare=dict(spare or {}))
    kept = tuple(filled if a.name == name else a for a in adapted.adapters)
    return dataclasses.replace(adapted, adapters=kept)
