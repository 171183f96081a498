"""The base that an adapter of PEFT was trained on, made out of the base at hand and of what the adapter's file brings.

PEFT writes a classifier into the file, and the token table and output matrix if they are targeted or the vocabulary was resized.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.checkpoints import CLASSIFIERS, HEADS, _family, _ours, _theirs, family_names, headed, read_arch, with_head
from minipeft.checkpoints.native import OF_VOCABULARY
from minipeft.engine.backend import to_device, to_host
from minipeft.engine.weight import again, widened
from minipeft.errors import Bad, note
from minipeft.interop.peft.keys import HEAD, TABLE, Parts, plain_body
from minipeft.interop.peft.names import CLASSIFIERS as PEFT_CLASSIFIERS
from minipeft.interop.peft.names import Config, Naming
from minipeft.model.base import Model
from minipeft.model.parts import shapes
from minipeft.model.replicated import as_ranges, joined, replicated

SAVED = re.compile(r"\.modules_to_save\.(?:(?!weight$|bias$|dense\.|out_proj\.)[^.]+\.)?")  # and an adapter's name
CLASSIFIER = re.compile(rf"({'|'.join(PEFT_CLASSIFIERS)})(\.(dense|out_proj))?\.(weight|bias)")
TASKS = {"SEQ_CLS": "classify", "TOKEN_CLS": "tokens"}


def with_fitting_head(model: Model, config: Config, bodies: Mapping[str, np.ndarray], folder: Path) -> Model:
    """The base with the head that the adapter's file has tensors of, be it a classifier, which is made out of the file, or an

    output matrix. Raises `Bad` where the file does not tell which, or something in front of the classifier is nowhere.
    """
    brought = {plain_body(SAVED.sub(".", body))[0]: a for body, a in bodies.items()}
    classifier = {k: a for k, a in brought.items() if CLASSIFIER.fullmatch(k)}
    if any(k.endswith(".weight") for k in classifier):
        return _classifying(model, config, brought, classifier, folder)
    root = (model.names.theirs("head") or "").split(".")[0]
    if root and model.arch.head not in ("lm", "mlm") and any(k.split(".")[0] == root for k in brought):
        held = dataclasses.replace(model, spare={**model.spare, **brought})
        return with_head(held, "lm" if model.arch.causal else "mlm")
    return model


def _classifying(
    model: Model, config: Config, brought: Mapping[str, Any], classifier: Mapping[str, Any], folder: Path
) -> Model:
    """The base with the classifier of a file."""
    fits = {}
    for head in CLASSIFIERS if not model.arch.patch else ("classify",):  # images have no tokens to classify
        for labels in {len(a) for k, a in classifier.items() if k.endswith(".weight")}:
            arch = headed(model.arch, head, labels)
            names = family_names(arch)
            needs = {n: s for n, s in shapes(arch).items() if n.startswith("score.")}
            has = {_ours(names, k, arch): tuple(a.shape) for k, a in classifier.items()}
            if has == needs:
                fits[head] = arch
    named = str((config.get("auto_mapping") or {}).get("base_model_class", ""))
    task = TASKS.get(str(config.get("task_type")), next((h for end, h in HEADS.items() if named.endswith(end)), ""))
    first = min(classifier)
    now, names = shapes(model.arch), family_names(model.arch)
    if not fits and all(now.get(_ours(names, k, model.arch) or "") == tuple(a.shape) for k, a in classifier.items()):
        return model  # a part of its own
    if not fits:
        found = ", ".join(f"{k} {tuple(a.shape)}" for k, a in sorted(classifier.items()))
        raise Bad(f"{folder}: no classifier of a {model.arch.family} model consists of {found}")
    own = model.arch.head if model.arch.head in fits else None
    chosen = task if task in CLASSIFIERS and (task in fits or not own) else own
    chosen = chosen or (next(iter(fits)) if len(fits) == 1 else None)
    if chosen is None:
        raise Bad(
            f"{folder / 'adapter_config.json'}: expected task_type SEQ_CLS or TOKEN_CLS, found None; {first} fits both"
        )
    if chosen not in fits:
        raise Bad(f"{folder}: {first} is no part of the head that task_type {config.get('task_type')} says")
    arch = fits[chosen]
    if (arch.head, arch.labels) == (model.arch.head, model.arch.labels):
        return model
    names = family_names(arch)
    spare = {**model.spare, **brought}
    held = {_ours(names, k, arch) for k in spare} | model.params.keys()
    if lost := [n for n in shapes(arch) if n.startswith(("score.", "pooler.")) and n not in held]:
        theirs = f"{names.theirs(lost[0].rpartition('.')[0])}.{lost[0].rpartition('.')[2]}"
        raise Bad(f"{folder}: the classifier needs {theirs}, which is neither in the adapter nor in the base")
    return with_head(dataclasses.replace(model, spare=spare), chosen, arch.labels)


HOLDS_LAYERS = re.compile(r"(model\.)*(bert\.)?(layers|encoder\.layer|h)")  # where PEFT looks for a model's layers


def with_repeated_layers(adapted: Adapted, config: Config, folder: Path) -> Adapted:
    """The model with the layers that a configuration says, those of its base repeated. Raises `Bad` where PEFT finds none to

    repeat, and where there are adapters on other layers already.
    """
    ranges = config.get("layer_replication")
    if as_ranges(adapted.model.origin) == joined(ranges or []):
        return adapted
    here = f"{folder / 'adapter_config.json'}: layer_replication"
    if adapted.adapters or adapted.model.origin:
        raise Bad(f"{here}: expected {as_ranges(adapted.model.origin) or 'none'}, as this model has it, found {ranges}")
    try:
        made = replicated(adapted.model, ranges or ())
    except Bad as why:
        raise Bad(f"{here}: {why}") from None
    repeats_of(made)
    return Adapted(made)


def repeats_of(model: Model) -> list[list[int]]:
    """The layers of a model as PEFT repeats them. Raises `Bad` where it finds none, notes where transformers masks others."""
    arch, family = model.arch, _family(model.arch.family)
    place = Naming(model, arch.head == "none").theirs("layers.0.mlp.up").partition(".0.")[0]
    if not HOLDS_LAYERS.fullmatch(place):
        raise Bad(f"PEFT repeats no layers of {arch.family} with the head {arch.head!r}: it does not look at {place}")
    if model.config and (kinds := family.of_layers(arch) if hasattr(family, "of_layers") else {}):
        known = family.of_layers(read_arch(dict(model.config)))["layer_types"]
        if (found := kinds["layer_types"]) != known[: len(found)]:
            note(
                f"layer_replication: transformers 5 takes the windows of {arch.family} by the new numbers of its layers, of which "
                f"it has {len(known)}; here each layer keeps its own"
            )
    return as_ranges(model.origin)


def with_brought_base(model: Model, parts: Parts, folder: Path) -> tuple[Model, list[str]]:
    """The base with the parameters that the file has of it, and which of them differ from those at hand.

    Another number of rows in the token table is another vocabulary: a smaller one keeps the first rows of what the file
    does not have, as transformers does. Raises `Bad` where a larger one lacks rows, and for what does not fit.
    """
    arch, params = model.arch, dict(model.params)
    given = {n: {"trained whole": parts.whole.get(n), "the base's": parts.base.get(n)} for n in OF_VOCABULARY}
    sizes = {len(a) for both in given.values() for a in both.values() if a is not None}
    if len(sizes) > 1:
        raise Bad(
            f"{folder}: the token table and the output matrix differ in their rows: {', '.join(map(str, sorted(sizes)))}"
        )
    rows = next(iter(sizes), arch.vocab)
    read = {TABLE} if arch.shares_table else set()  # by the head, though the table is trained whole
    brought = {n: a for n, a in parts.base.items() if n not in parts.whole or n in read}
    if rows != arch.vocab and TABLE in model.params:
        for name in OF_VOCABULARY:
            if name not in params or name in brought:
                continue
            needed = name not in parts.whole or (name in read and HEAD not in parts.whole)
            if needed and rows > arch.vocab:
                theirs = model.names.theirs(name) or f"{model.names.theirs(name.rpartition('.')[0])}.weight"
                raise Bad(
                    f"{folder}: its vocabulary has {rows} tokens, the base {arch.vocab}: {theirs} lacks the new rows"
                )
            brought[name] = to_host(widened(params[name]))[:rows] if needed else parts.whole[name]
        arch = dataclasses.replace(arch, vocab=rows)
    expected = shapes(arch)
    changed = []
    for name, a in brought.items():
        if tuple(a.shape) != expected[name]:
            raise Bad(f"{folder}: the base's {name}: expected shape {expected[name]}, found {tuple(a.shape)}")
        if a.dtype.kind != "f":
            raise Bad(f"{folder}: the base's {name}: expected floating-point numbers, found {a.dtype}")
        if not np.isfinite(a).all():
            raise Bad(f"{folder}: the base's {name} has NaN or infinite values")
        held = params[name]
        new = to_device(np.ascontiguousarray(a).astype(model.dtype))
        same = tuple(held.shape) == tuple(a.shape) and bool((to_host(widened(held)) == to_host(new)).all())
        if not same:
            params[name] = again(new, held)
            changed.append(name)
    if strange := [n for n in changed if n not in OF_VOCABULARY]:
        theirs = _theirs(model.names, strange[0]) or strange[0]
        raise Bad(
            f"{folder}: changes {len(strange)} parameters of its base, the first {theirs}, which adapter_config.json neither "
            "targets nor saves whole"
        )
    if not changed:
        return model, []
    size = {"vocab_size": arch.vocab} if "vocab_size" in model.config else {}
    return dataclasses.replace(model, arch=arch, params=params, config={**model.config, **size}), changed
