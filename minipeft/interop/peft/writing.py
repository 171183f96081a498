"""Adapters written as Hugging Face PEFT would: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.arrays import held_for
from minipeft.checkpoints import their_layout
from minipeft.checkpoints.files import write_json, write_tensors
from minipeft.engine.backend import to_host
from minipeft.engine.weight import widened
from minipeft.errors import Bad
from minipeft.interop.peft.base import repeats_of
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.keys import HEAD, OUTSIDE, TABLE, TOKENS, TOKENS_KEY, WHOLE, body_of, module_of, plain_key
from minipeft.interop.peft.names import CLASSIFYING, Naming
from minipeft.interop.peft.parameters import with_parameters
from minipeft.interop.peft.reading import refuse_vague
from minipeft.interop.peft.registry import method_name, spec_of
from minipeft.interop.peft.spec import ROOT, Keys, Spec, shared_to_theirs, to_theirs
from minipeft.interop.peft.starts import refuse_moved
from minipeft.method import Method, Site, ties
from minipeft.model.base import Model
from minipeft.targets import sites


def _own(model: Model) -> Naming:
    return Naming(model, model.arch.head == "none")


def their_name(model: Model, module: str) -> str:
    """Their name of our module, that of the bare model for a base without a head. Raises `Bad` if it has none."""
    return _own(model).theirs(module)


def _main(adapter: Adapter) -> dict[str, Method]:
    """The sites of the method itself, without what is trained beside it."""
    return {s: m for s, m in adapter.at.items() if m.name not in (WHOLE, TOKENS) or type(m) is type(adapter.method)}


def to_peft_tensors(adapted: Adapted, adapter: Adapter, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays "site:name" of an adapter, or their gradients, under PEFT's keys and in its layout."""
    model = adapted.model
    arch = model.arch
    spec = spec_of(adapter.method)
    spec = spec.of(spec.write(adapter.method, arch) | adapter.options.get("peft", {}), arch)
    spec = with_parameters(spec, model, adapter.options.get("parameters", ()))
    every = sites(model)
    out: dict[str, np.ndarray] = {}
    grouped: dict[str, dict[str, Any]] = {}
    shared: dict[str, Any] = {}
    for full, a in arrays.items():
        site, _, name = full.rpartition(":")
        if name in spec.root_keys and (not site or spec.is_prompt):
            shared[name] = to_host(a)
        elif site:
            grouped.setdefault(site, {})[name] = to_host(a)
    out |= shared_to_theirs(spec.root_keys, shared, arch)
    for name, by in held_for(adapter.method, adapter.at).items():  # theirs has at every site what is shared
        for site, holder in by.items():
            if site in grouped and name in grouped.get(holder, {}):
                grouped[site][name] = grouped[holder][name]
    if adapter.tied and TABLE in grouped:
        grouped[HEAD] = grouped[TABLE]  # theirs has it at both
    for site, own in grouped.items():
        method = adapter.at[TABLE if site == HEAD and adapter.tied else site]
        if method.name == WHOLE:
            (a,) = own.values()
            out[_whole_key(model, adapter, spec, site)] = their_layout(model.names, site, a, arch)
            if site == TABLE and _follows(model, adapter):
                out[_whole_key(model, adapter, spec, HEAD)] = a
        elif method.name == TOKENS and adapter.method.name != TOKENS:
            (a,) = own.values()
            out[f"{ROOT}{their_name(model, site.removesuffix('.weight'))}.{TOKENS_KEY}"] = a
        elif theirs := to_theirs(_keys(spec, method, every[site], own), _parts(spec, adapter, site, own), arch):
            module = module_of(_own(model), spec, site)
            out |= {f"{ROOT}{module}.{suffix}": a for suffix, a in theirs.items()}
    return dict(spec.common.theirs(out))


def _keys(spec: Spec, method: Method, site: Site, own: Collection[str]) -> Keys:
    """The keys of these arrays of a method at a site. Raises `Bad` for one that PEFT has on other modules alone."""
    keys = spec.keys_of(site)
    known = {*spec.keys, *(spec.embedding_keys or {})}
    if lost := [name for name in own if name in known and name not in keys]:
        raise Bad(f"{method.name} at {site.name}: PEFT has no {lost[0]} there")
    return keys


def _parts(spec: Spec, adapter: Adapter, site: str, own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arrays of one site as their file has them, in parts perhaps."""
    if spec.packing is None:
        return own
    beside = {k.rpartition(":")[2]: to_host(a) for k, a in adapter.arrays.items() if k.rpartition(":")[0] == site}
    return spec.packing.theirs(own, beside)


def _whole_key(model: Model, adapter: Adapter, spec: Spec, site: str) -> str:
    """Their key of a parameter that is trained whole."""
    module, _, leaf = site.rpartition(".")
    if spec.embeds and site == TABLE:
        return f"{_outside(model, spec)}.weight"
    beside = adapter.at.get(f"{module}.weight") if leaf == "bias" else None
    copied = beside is not None  # with its module, a tied head's bias too
    theirs = (not copied and model.names.theirs(site)) or f"{their_name(model, module)}.{leaf}"
    if (leaf == "bias" and _idle(model, adapter).get(their_name(model, module)) == "adapted") or (
        beside is not None and beside.name != WHOLE
    ):
        theirs = theirs.replace(".bias", ".base_layer.bias")
    if spec.on_layers and re.sub(r"(layers\.\d+)\..*", r"\1", site) in adapter.at:
        theirs = re.sub(r"(\.\d+)\.", r"\1.base_layer.", theirs, count=1)
    return spec.root + theirs


def _outside(model: Model, spec: Spec) -> str:
    """What PEFT calls a table in which it looks tokens up beside a prompt. Raises `Bad` where it takes the base's own."""
    if not (own := their_name(model, "embed.tokens")).endswith(OUTSIDE):
        raise Bad(
            f"{spec.peft_type}: beside a prompt PEFT looks tokens up in the base's {own}, whatever was trained of it"
        )
    return OUTSIDE


def _idle(model: Model, adapter: Adapter) -> dict[str, str]:
    """What this model has no use for, by the base's own names."""
    return {_in_base(model, module): kind for module, kind in adapter.options.get("idle", {}).items()}


def _in_base(model: Model, module: str) -> str:
    """The base's own name of a module that an adapter names."""
    return body_of(plain_key(model, ROOT + module))


def _saved_module(model: Model, site: str, whole: Collection[str]) -> str:
    """The module that PEFT saves whole for a parameter: of all of a classifier the outermost, which PEFT names itself."""
    module = their_name(model, site.rpartition(".")[0])
    classifier = {n for n in model.params if n.startswith("score.")}
    return module.split(".")[0] if site in classifier and classifier <= set(whole) else module


def _brought(model: Model, adapter: Adapter, spec: Spec) -> dict[str, Any]:
    """The parameters of the base that the adapter's file brought, under PEFT's keys and in its layout."""
    out = {}
    idle = _idle(model, adapter)
    around = {
        "whole": "original_module.",
        "adapted": "base_layer.",
    }  # what PEFT puts between a module and its own weight
    for name in adapter.options.get("brought", ()):
        module, _, leaf = name.rpartition(".")
        method = adapter.at.get(name)
        inner = {WHOLE: "original_module.", TOKENS: "token_adapter.base_layer."}
        wrapper = around.get(idle.get(model.names.theirs(module) or "", ""), "")
        wrapper = wrapper if method is None else inner.get(method.name, "base_layer.")
        if method is not None and type(method) is type(adapter.method):
            wrapper = "base_layer."
        theirs = model.names.theirs(name) or f"{their_name(model, module)}.{wrapper}{leaf}"
        out[spec.root + theirs] = their_layout(model.names, name, to_host(widened(model.params[name])), model.arch)
        if name == TABLE and model.arch.shares_table and HEAD not in adapter.at:
            out[f"{spec.root}{their_name(model, 'head')}.{_around(model, adapter)}weight"] = out[spec.root + theirs]
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
    config = spec.write(adapter.method, model.arch)
    adapter = spec.plain(model, adapter)
    spec = dataclasses.replace(spec_of(adapter.method), peft_type=spec.peft_type)
    spec = with_parameters(spec, model, adapter.options.get("parameters", ()))
    config |= dict(peft_type=spec.peft_type, base_model_name_or_path=None, inference_mode=True)
    config |= _layers(model, spec) | _modules(model, adapter, spec, folder)
    _refuse_apart(model, adapter)
    refuse_vague(adapter.method.name, spec, _main(adapter), model)
    config |= _beside(model, adapter, spec) | adapter.options.get("began", {})
    if task := _task(model, adapter, spec):
        config["task_type"] = task
    method_name(config)  # raises `Bad` for what PEFT could not read again
    if "left" not in adapter.options:
        refuse_moved(config, _own(model))
    unread = {
        k: v for k, v in adapter.options.items() if k != "peft"
    }  # it is written as the configuration above has it
    tensors = to_peft_tensors(adapted, dataclasses.replace(adapter, options=unread), adapter.arrays)
    if spec.is_prompt or config.get("task_type") in CLASSIFYING:
        tensors = _classifier(model, spec) | tensors
    for module, kind in _idle(model, adapter).items():
        field = "target_modules" if kind == "adapted" else "modules_to_save"
        config[field] = sorted({*(config.get(field) or ()), module})
        for name in spec.patterns if kind == "adapted" else ():  # which tell its shapes
            config[name] = (config.get(name) or {}) | (adapter.options.get("peft", {}).get(name) or {})
    tensors = (
        {plain_key(model, k, spec.root): to_host(a) for k, a in adapter.spare.items()}
        | _brought(adapted.model, adapter, spec)
        | tensors
    )
    narrow = tuple(f".{k.suffix}" for k in spec.keys.values() if k.float32)
    tensors = {k: a.astype(np.float32) if k.endswith(narrow) else a for k, a in tensors.items()}
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "adapter_config.json", config)
    spec.save(adapted, adapter, folder)


def _layers(model: Model, spec: Spec) -> Config:
    """How layers were repeated, where they were."""
    if not model.origin:
        return {}
    if "layer_replication" not in spec.known:
        raise Bad(f"PEFT repeats no layers for {spec.peft_type}: it has no layer_replication there; merge the adapter")
    return dict(layer_replication=repeats_of(model))


def _modules(model: Model, adapter: Adapter, spec: Spec, folder: Path) -> Config:
    """Which modules have the method, and what differs among them."""
    main = _main(adapter)
    every = sites(model)
    held = {s for s in main if any(f"{s}:{name}" in adapter.arrays for name in spec.keys_of(every[s]))}
    modules = {s: module_of(_own(model), spec, s) for s in main if s in held}
    tied = adapter.tied and TABLE in modules
    if tied:
        modules[HEAD], main[HEAD] = module_of(_own(model), spec, HEAD), main[TABLE]
    config: Config = {}
    if spec.keys and not spec.on_blocks:
        names = spec.named_as(modules)
        config["target_modules"] = sorted(n for s, n in names.items() if s not in spec.parameters)
        if own := sorted(n for s, n in names.items() if s in spec.parameters):
            config |= _parameters(model, spec, modules) | dict(target_parameters=own)
        for theirs, ours in spec.patterns.items():
            usual = getattr(adapter.method, ours)
            if differ := {names[s]: v for s in modules if (v := getattr(main[s], ours)) != usual}:
                config[theirs] = differ
    if tied:
        config |= _tied(spec, modules[HEAD])
    return config | spec.named(model, adapter, modules) | spec.of_adapter(adapter, modules, folder)


def _follows(model: Model, adapter: Adapter) -> bool:
    """Whether a tied head follows a token table that is trained whole."""
    method = adapter.at.get(TABLE)
    return model.arch.shares_table and method is not None and method.name == WHOLE and ties(method)


def _tied(spec: Spec, head: str) -> Config:
    """ensure_weight_tying. Raises `Bad` where PEFT ties no head, or none of this name."""
    field = spec.known.get("ensure_weight_tying")
    if field is None or "." in head:
        raise Bad(f"{spec.peft_type}: PEFT ties no head {head} to a token table that is adapted or trained whole")
    return dict(ensure_weight_tying=True)


def _around(model: Model, adapter: Adapter) -> str:
    """What PEFT puts between a tied head that follows its table and its weight."""
    return "base_layer." if adapter.tied else "original_module." if _follows(model, adapter) else ""


def _parameters(model: Model, spec: Spec, modules: Mapping[str, str]) -> Config:
    """What goes with target_parameters. Raises `Bad` beside modules whose weights are stored as (in, out)."""
    for site in modules:
        if site not in spec.parameters and model.names.is_transposed(site.removesuffix(".weight")):
            raise Bad(f"PEFT adapts no parameters beside {modules[site]}, which needs fan_in_fan_out")
    return dict(fan_in_fan_out=False)


def _refuse_apart(model: Model, adapter: Adapter) -> None:
    """Raises `Bad` where transformers has tables of its own and PEFT would compute something else."""
    if model.arch.encoder_layers and any(s == TABLE and m.name != TOKENS for s, m in adapter.at.items()):
        raise Bad(
            f"{adapter.at[TABLE].name} at {TABLE}: in transformers the stacks look tokens up in tables of their own, "
            f"and PEFT would compute nothing; expected {TOKENS}"
        )


def _beside(model: Model, adapter: Adapter, spec: Spec) -> Config:
    """What is trained beside the method: whole modules, biases, rows of a table."""
    config: Config = {}
    whole = {s for s, m in adapter.at.items() if m.name == WHOLE}
    biases = {s for s in whole if s.endswith(".bias") and s.removesuffix("bias") + "weight" not in whole}
    if whole - biases:
        outside = {TABLE} & whole if spec.embeds or f"{OUTSIDE}.weight" in adapter.spare else set()
        saved = {_saved_module(model, s, whole) for s in whole - biases - outside}
        config["modules_to_save"] = sorted(saved | {_outside(model, spec) for _ in outside})
        if _follows(model, adapter):
            module = their_name(model, "head")
            if HEAD in adapter.at:
                raise Bad(
                    f"{adapter.at[HEAD].name} at {HEAD}: PEFT adapts no head that is tied to a table trained whole"
                )
            config |= _tied(spec, module)
            config["modules_to_save"].append(module)
    if biases:
        option = adapter.options.get("bias", "none")
        config["bias"] = {"adapted": f"{spec.peft_type.lower()}_only"}.get(option, option)
    rows: dict[str, Any] = {s: m for s, m in adapter.at.items() if m.name == TOKENS}
    if rows and adapter.method.name != TOKENS:
        if "trainable_token_indices" not in spec.known:
            raise Bad(
                f"{adapter.method.name} cannot be written for PEFT with {TOKENS} beside it: {spec.peft_type} has no "
                "trainable_token_indices, and PEFT would pass the rows over"
            )
        config["trainable_token_indices"] = {
            their_name(model, s.removesuffix(".weight")): list(m.tokens) for s, m in rows.items()
        }
    return config


def _task(model: Model, adapter: Adapter, spec: Spec) -> str:
    """The task_type, "" where PEFT does without."""
    task = {
        "lm": "SEQ_2_SEQ_LM" if model.arch.encoder_layers else "CAUSAL_LM",
        "classify": "SEQ_CLS",
        "tokens": "TOKEN_CLS",
    }
    classifier = {
        n for n in model.params if n.startswith("score.")
    }  # PEFT saves it whole for these tasks, and expects it
    whole = {s for s, m in adapter.at.items() if m.name == WHOLE}
    if spec.tasked or (classifier and classifier <= whole and not model.arch.patch):
        return task.get(model.arch.head, "FEATURE_EXTRACTION")
    return ""


def _classifier(model: Model, spec: Spec) -> dict[str, Any]:
    """The classifier of the base, which PEFT expects beside a prompt, and of a classifying task."""
    if model.arch.head not in ("classify", "tokens"):
        return {}
    start = ("base_model." if spec.is_prompt else ROOT) + their_name(model, "score")
    leaves = [n for n in model.params if n.startswith("score.")]
    return {f"{start}.{n.rpartition('.')[2]}": to_host(widened(model.params[n])) for n in leaves}
