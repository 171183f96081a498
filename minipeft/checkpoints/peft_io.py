"""Adapters of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors, read and written.

What stands where is in `minipeft.checkpoints.peft_specs`. Module names go through the bijection of the base's family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.attaching import attach
from minipeft.checkpoints import their_layout
from minipeft.checkpoints.files import existing, read_json, read_tensors, write_json, write_tensors
from minipeft.checkpoints.peft_base import with_brought_base, with_fitting_head
from minipeft.checkpoints.peft_config import checked
from minipeft.checkpoints.peft_declared import refuse_absent
from minipeft.checkpoints.peft_keys import HEAD, ROOT, TABLE, body_of, keys_at, module_of, plain_key, sorted_keys
from minipeft.checkpoints.peft_specs import PATTERNS, SPECS, Config, Spec, method_name, spec_of
from minipeft.checkpoints.peft_targets import Naming, targeted
from minipeft.engine.backend import read_only, to_device, to_host
from minipeft.engine.bfloat16 import widened
from minipeft.errors import Bad, near
from minipeft.method import Method, method_class
from minipeft.model.arch import Arch, Model
from minipeft.targets import sites

# --- names ------------------------------------------------------------------------------------------------------------


def their_name(model: Model, module: str) -> str:
    """Their name of our module, that of the bare model for a base without a head. Raises `Bad` if it has none."""
    return _own(model).theirs(module)


def _own(model: Model) -> Naming:
    return Naming(model, model.arch.head == "none")


# --- reading ----------------------------------------------------------------------------------------------------------


def read_config(folder: str | Path) -> Config:
    """adapter_config.json of a folder, checked field by field and complete (`peft_config.checked`)."""
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
    config = read_config(folder)
    load_parts = _load_xlora if config.get("peft_type") == "XLORA" else load_peft_parts
    return load_parts(model, config, read_adapter_tensors(folder), folder, name)


def load_peft_parts(
    model: Model | Adapted, config: Config, tensors: Mapping[str, np.ndarray], folder: Path, name: str = "default"
) -> Adapted:
    """`load_peft` of a configuration and tensors that were read already."""
    adapted = model if isinstance(model, Adapted) else Adapted(model)
    kind = method_name(config)
    spec = SPECS[kind].of(config, adapted.model.arch)
    cls = method_class(kind)
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
    fields = _fields(spec, config, base.arch, folder)
    every = sites(base)
    found = {site: parts.at[site] for site in every if site in parts.at}  # in the model's order, whatever the file's
    modules = {site: module_of(naming, spec, site) for site in found}
    per_site = {site: spec.at_site(config, modules[site], arrays) for site, arrays in found.items()}
    for site, arrays in [*found.items(), ("", parts.shared)]:
        for size in spec.sizes:
            _refuse_huge(folder, size, per_site.get(site, {}).get(size, fields.get(size)), arrays)
    method = cls(**fields)
    if not spec.on_blocks and found:
        _same_targets(naming, config, spec, found, parts.idle_sites(naming, "whole", "adapted"), folder)
    if parts.rows and not isinstance(config.get("trainable_token_indices"), (list, dict)):
        raise Bad(f"{folder / 'adapter_config.json'}: tensors of trained tokens need trainable_token_indices")
    full: Any = method_class("full")
    beside = [_rows(naming, config, site) for site in every if site in parts.rows]
    refuse_absent(folder, config, naming, found, parts)
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
    return _filled(adapted, name, new, folder, spec, modules, options, parts.spare)


def _same_targets(
    naming: Naming, config: Config, spec: Spec, found: Mapping[str, Any], idle: Collection[str], folder: Path
) -> None:
    """Raises `Bad` where the sites that target_modules names are not those that have tensors."""
    wanted = targeted(config, naming)
    if wanted is None:
        return
    every = sites(naming.model)
    if lost := [s for s in every if s in wanted and s not in found and s not in idle]:
        keys = [k.suffix for n, k in keys_at(spec, every[lost[0]]).items() if n in next(iter(found.values()))]
        first = naming.theirs(lost[0].removesuffix(".weight"))
        raise Bad(
            f"{folder}: {len(lost)} target modules have no tensors, the first {first}: {', '.join(keys) or 'its keys'} missing"
        )
    if more := [s for s in found if s not in wanted]:
        first = naming.theirs(more[0].removesuffix(".weight"))
        raise Bad(f"{folder}: {len(more)} modules have tensors and are no target_modules, the first {first}")


def _refuse_huge(folder: Path, size: str, declared: Any, arrays: Mapping[str, Any]) -> None:
    """A size that no axis of the file's arrays has is refused before anything of that size is made."""
    longest = max((n for a in arrays.values() for n in a.shape), default=0)
    if (
        arrays and declared is not None and declared > max(longest, 1024)
    ):  # smaller ones cost nothing, and are told better below
        raise Bad(
            f"{folder}: {size} is {declared} by adapter_config.json, but no axis of the file's arrays is longer than {longest}"
        )


def _fields(spec: Spec, config: Config, arch: Arch, folder: Path) -> Config:
    try:
        return spec.fields(config, arch)
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
    rows: Any = method_class("trainable_tokens")
    return rows(tokens=tuple(given), head_bias="drop", targets=site)


def _load_xlora(
    model: Model | Adapted, config: Config, tensors: Mapping[str, np.ndarray], folder: Path, name: str = "default"
) -> Adapted:
    """X-LoRA: the classifier, and the experts in sub-folders, named after them or where the configuration says."""
    adapted = model if isinstance(model, Adapted) else Adapted(model)
    cls: Any = method_class("x_lora")
    experts = []
    for k, (key, place) in enumerate((config.get("adapters") or {}).items()):
        where = next(
            (p for p in (folder / str(place), folder / key, folder / str(k)) if (p / "adapter_config.json").exists()),
            None,
        )
        if where is None:
            raise Bad(f"{folder}: expert {key!r} of the XLORA adapter is neither in {folder / key} nor in {place}")
        own = {}
        for full, a in read_adapter_tensors(where).items():
            if ".lora_" in (body := full.removeprefix("base_model.").removeprefix("lora_model.")):
                own["base_model." + body] = a  # PEFT's copies hold the base and the classifier as well
        expert = read_config(where) | dict(
            task_type=None, modules_to_save=None, bias="none"
        )  # PEFT takes an expert's factors alone
        experts.append(load_peft_parts(adapted.model, expert, own, where).adapters[0])
    if not experts:
        raise Bad(f"{folder / 'adapter_config.json'}: an XLORA adapter needs adapters, its experts")
    fields = _fields(SPECS["x_lora"], config, adapted.model.arch, folder)
    if fields["depth"] > 1:
        _refuse_huge(folder, "hidden", fields["hidden"], tensors)
    method = cls.from_adapters(experts, **fields)
    spec = spec_of(method)
    adapted = attach(adapted, method, name=name)
    names = {k.suffix: n for n, k in spec.root_keys.items()}
    if strange := sorted(set(tensors) - set(names)):
        raise Bad(f"{folder}: unexpected key {strange[0]!r} in an XLORA adapter{near(strange[0], names, 1)}")
    new = {f":{names[k]}": a for k, a in tensors.items()}
    new |= {k: to_host(a) for k, a in adapted.adapter(name).arrays.items() if not k.startswith(":")}  # the experts'
    return _filled(adapted, name, new, folder, spec, {}, dict(bias="none", train_whole=[], peft=dict(config)))


def _bias_option(config: Config) -> str:
    bias = config.get("bias") or "none"
    return bias if bias in ("none", "all") else "adapted"


def _filled(
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
        if site in modules and array in (keys := keys_at(spec, every[site])):
            return f"{ROOT}{modules[site]}.{keys[array].suffix}"
        return f"{site}:{array}" if site else spec.root_keys[array].suffix if array in spec.root_keys else array

    stored = {
        k for k in adapter.arrays if (s := k.rpartition(":"))[0] in modules and s[2] in keys_at(spec, every[s[0]])
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
        expected = tuple(arrays[key].shape)
        if tuple(a.shape) != expected:
            turned = "; it looks transposed" if tuple(a.shape[::-1]) == expected else ""
            raise Bad(
                f"{folder}: {label(key)} as {key.rpartition(':')[2]}: expected shape {expected}, found {tuple(a.shape)}{turned}"
            )
        if (a.dtype.kind == "f") != (arrays[key].dtype.kind == "f"):
            raise Bad(f"{folder}: {label(key)}: expected {arrays[key].dtype}, found {a.dtype}")
        if a.dtype.kind == "f" and not np.isfinite(a).all():
            raise Bad(f"{folder}: {label(key)} has NaN or infinite values")
        held = to_device(np.ascontiguousarray(a).astype(dtype if a.dtype.kind == "f" else a.dtype))
        arrays[key] = held if key in adapter.trained else read_only(held)
    trained = frozenset(k for k in adapter.trained if k.rpartition(":")[2] not in spec.fixed)
    filled = dataclasses.replace(adapter, arrays=arrays, trained=trained, options=options, spare=dict(spare or {}))
    kept = tuple(filled if a.name == name else a for a in adapted.adapters)
    return dataclasses.replace(adapted, adapters=kept)


# --- writing ----------------------------------------------------------------------------------------------------------


def to_peft_tensors(adapted: Adapted, adapter: Adapter, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays "site:name" of an adapter, or their gradients, under PEFT's keys and in its layout."""
    model = adapted.model
    spec = spec_of(adapter.method).of(adapter.options.get("peft", {}), model.arch)
    every = sites(model)
    out: dict[str, np.ndarray] = {}
    pairs: dict[str, dict[str, Any]] = {}
    for full, a in arrays.items():
        site, _, name = full.rpartition(":")
        a = to_host(a)
        if name in spec.root_keys and (not site or spec.is_prompt):
            out[spec.root_keys[name].suffix] = spec.root_keys[name].theirs(a, model.arch)
            continue
        if not site:
            continue
        method = adapter.at[site]
        if method.name == "full":
            module, _, leaf = site.rpartition(".")
            copied = leaf == "bias" and f"{module}.weight" in adapter.at  # with its module, a tied head's bias too
            theirs = (not copied and model.names.theirs(site)) or f"{their_name(model, module)}.{leaf}"
            inner = (
                leaf == "bias" and f"{module}.weight" in adapter.at and adapter.at[f"{module}.weight"].name != "full"
            )
            theirs = theirs.replace(".bias", ".base_layer.bias") if inner else theirs
            start = "base_model." if spec.is_prompt else ROOT
            out[start + theirs] = their_layout(model.names, site, a, model.arch)
            continue
        if method.name == "trainable_tokens" and adapter.method.name != "trainable_tokens":
            out[f"{ROOT}{their_name(model, site.removesuffix('.weight'))}.token_adapter.trainable_tokens_delta"] = a
            continue
        keys = keys_at(spec, every[site])
        if name not in keys:
            continue  # stored arrays that PEFT makes again
        key = f"{ROOT}{module_of(_own(model), spec, site)}.{keys[name].suffix}"
        if spec.peft_type == "SHIRA" and name in ("rows", "cols"):
            pairs.setdefault(key, {})[name] = a
        else:
            out[key] = np.ascontiguousarray(keys[name].theirs(a, model.arch))
    for key, two in pairs.items():
        out[key] = np.stack([two["rows"], two["cols"]]).astype(np.int32)
    return out


def _in_base(model: Model, module: str) -> str:
    """The base's own name of a module that an adapter names."""
    return body_of(plain_key(model, ROOT + module))


def _saved_module(model: Model, site: str) -> str:
    """The module that PEFT saves whole for a parameter: of a classifier the outermost, which PEFT names itself."""
    module = their_name(model, site.rpartition(".")[0])
    return module.split(".")[0] if site.startswith("score.") else module


def _brought(model: Model, adapter: Adapter, spec: Spec) -> dict[str, Any]:
    """The parameters of the base that the adapter's file brought, under PEFT's keys and in its layout."""
    out = {}
    idle = {_in_base(model, module): kind for module, kind in adapter.options.get("idle", {}).items()}
    around = {
        "whole": "original_module.",
        "adapted": "base_layer.",
    }  # what PEFT puts between a module and its own weight
    for name in adapter.options.get("brought", ()):
        module, _, leaf = name.rpartition(".")
        method = adapter.at.get(name)
        inner = {"full": "original_module.", "trainable_tokens": "token_adapter.base_layer."}
        wrapper = around.get(idle.get(model.names.theirs(module) or "", ""), "")
        wrapper = wrapper if method is None else inner.get(method.name, "base_layer.")
        if method is not None and type(method) is type(adapter.method):
            wrapper = "base_layer."
        theirs = model.names.theirs(name) or f"{their_name(model, module)}.{wrapper}{leaf}"
        start = "base_model." if spec.is_prompt else ROOT
        out[start + theirs] = their_layout(model.names, name, to_host(widened(model.params[name])), model.arch)
        if name == TABLE and model.arch.shares_table and HEAD not in adapter.at:
            out[f"{start}{their_name(model, 'head')}.weight"] = out[start + theirs]
    return out


def save_peft(adapted: Adapted, folder: str | Path, name: str | None = None) -> None:
    """Write one adapter (default: the only one) as PEFT would. Raises `Bad` for methods or settings PEFT has not."""
    if name is None and len(adapted.adapters) != 1:
        raise Bad(
            f"expected one adapter or a name, found {len(adapted.adapters)}: {', '.join(a.name for a in adapted.adapters)}"
        )
    adapter = adapted.adapter(name or adapted.adapters[0].name)
    if (share := adapted.weights.get(adapter.name, 1.0)) != 1.0:
        raise Bad(f"adapter {adapter.name!r} has the weight {share:g}, for which PEFT's files have no place; merge it")
    model, spec, folder = adapted.model, spec_of(adapter.method), Path(folder)
    config = spec.config(adapter.method, model.arch)
    adapter = spec.plain(model, adapter)
    spec = dataclasses.replace(spec_of(adapter.method), peft_type=spec.peft_type)
    config |= dict(peft_type=spec.peft_type, base_model_name_or_path=None, inference_mode=True)
    main = {
        s: m
        for s, m in adapter.at.items()
        if m.name not in ("full", "trainable_tokens") or type(m) is type(adapter.method)
    }
    if spec.on_blocks:
        config["adapter_layers"] = sum(s.endswith("attn.heads") for s in main)
    elif spec.peft_type == "XLORA":
        config["adapters"] = {str(k): str(folder / str(k)) for k in range(len(adapter.method.experts))}  # type: ignore[attr-defined]
    elif not spec.is_prompt:
        config["target_modules"] = sorted(module_of(_own(model), spec, s) for s in main)
        for theirs, ours in PATTERNS.get(spec.peft_type, {}).items():
            differ = {s: getattr(m, ours) for s, m in main.items() if getattr(m, ours) != getattr(adapter.method, ours)}
            if differ:
                config[theirs] = {module_of(_own(model), spec, s): v for s, v in differ.items()}
    if spec.peft_type == "ADALORA" and any(m.kept is not None for m in main.values()):  # type: ignore[attr-defined]
        used = {f"{module_of(_own(model), spec, s)}.lora_E": len(adapter.arrays[f"{s}:lam"]) for s in main}
        config["rank_pattern"] = {key: [n < k for n in range(config["init_r"])] for key, k in used.items()}
    if spec.peft_type == "IA3":
        config["feedforward_modules"] = sorted(
            module_of(_own(model), spec, s) for s in main if f"{s}:l_ff" in adapter.arrays
        )
    if model.arch.encoder_layers and any(s == TABLE and m.name != "trainable_tokens" for s, m in adapter.at.items()):
        raise Bad(
            f"{adapter.at[TABLE].name} at {TABLE}: in transformers the stacks look tokens up in tables of their own, "
            "and PEFT would compute nothing; expected trainable_tokens"
        )
    whole = {s for s, m in adapter.at.items() if m.name == "full"}
    if model.arch.tied and getattr(adapter.at.get("embed.tokens.weight"), "head", "") == "follows":
        raise Bad(
            "full at embed.tokens.weight: PEFT leaves a tied head as it was; expected head='stays', found 'follows'"
        )
    biases = {s for s in whole if s.endswith(".bias") and s.removesuffix("bias") + "weight" not in whole}
    if whole - biases:
        config["modules_to_save"] = sorted({_saved_module(model, s) for s in whole - biases})
    if biases:
        option = adapter.options.get("bias", "none")
        config["bias"] = {"adapted": f"{spec.peft_type.lower()}_only"}.get(option, option)
    rows: dict[str, Any] = {s: m for s, m in adapter.at.items() if m.name == "trainable_tokens"}
    if rows and adapter.method.name != "trainable_tokens":
        config["trainable_token_indices"] = {
            their_name(model, s.removesuffix(".weight")): list(m.tokens) for s, m in rows.items()
        }
    task = {
        "lm": "SEQ_2_SEQ_LM" if model.arch.encoder_layers else "CAUSAL_LM",
        "classify": "SEQ_CLS",
        "tokens": "TOKEN_CLS",
    }
    classifier = {
        n for n in model.params if n.startswith("score.")
    }  # PEFT saves it whole for these tasks, and expects it
    if (
        spec.is_prompt
        or spec.peft_type in ("ADAPTION_PROMPT", "POLY", "XLORA")
        or (classifier and classifier <= whole and not model.arch.patch)
    ):
        config["task_type"] = task.get(model.arch.head, "FEATURE_EXTRACTION")
    unread = {
        k: v for k, v in adapter.options.items() if k != "peft"
    }  # it is written as the configuration above has it
    tensors = to_peft_tensors(adapted, dataclasses.replace(adapter, options=unread), adapter.arrays)
    if spec.is_prompt and model.arch.head in (
        "classify",
        "tokens",
    ):  # there PEFT expects the classifier beside the prompt
        leaves = [n for n in model.params if n.startswith("score.")]
        own = {
            f"base_model.{their_name(model, 'score')}.{n.rpartition('.')[2]}": to_host(widened(model.params[n]))
            for n in leaves
        }
        tensors = own | tensors
    for module, kind in adapter.options.get("idle", {}).items():
        field = "target_modules" if kind == "adapted" else "modules_to_save"
        config[field] = sorted({*(config.get(field) or ()), _in_base(model, module)})
    tensors = (
        {plain_key(model, k): to_host(a) for k, a in adapter.spare.items()}
        | _brought(adapted.model, adapter, spec)
        | tensors
    )
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "adapter_config.json", config)
    for k, expert in enumerate(getattr(adapter.method, "experts", ())):
        own = {s: expert for s in adapter.at if f"{s}:A{k}" in adapter.arrays}
        arrays = {f"{s}:{n}": adapter.arrays[f"{s}:{n}{k}"] for s in own for n in "AB"}
        alone = Adapter("expert", expert, own, arrays, frozenset(arrays))
        save_peft(Adapted(model, (alone,)), folder / str(k))
