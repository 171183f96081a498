"""Our own adapter files: a folder with adapter.json (what, where, on which base) and adapter.safetensors (the arrays)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.arrays import declared
from minipeft.attaching import holding
from minipeft.checkpoints import CLASSIFIERS, HEADS, QUANTISED, with_head
from minipeft.checkpoints.files import read_json, read_tensors, write_json, write_tensors
from minipeft.drawing import expected, wrong_in
from minipeft.engine.backend import read_only, to_device, to_host
from minipeft.engine.weight import again, factor, form, quantised, widened
from minipeft.errors import Bad, near
from minipeft.limits import LAYERS
from minipeft.merging import digest
from minipeft.method import Method, Site, is_whole, method_class, refuse_unfit
from minipeft.model.base import Model
from minipeft.model.parts import shapes as shapes_of
from minipeft.model.replicated import as_ranges, joined, replicated
from minipeft.shown import shortly
from minipeft.targets import sites

FORMAT = 3  # 2, without a digest of what both files say, is read too
BROUGHT = "base:"  # in front of parameters of the base that came with the adapter: the table of a resized vocabulary
OF_VOCABULARY = ("embed.tokens.weight", "head.weight", "head.bias")  # a row for every token


def encode(value: Any) -> Any:
    """A setting, or a method with all of its own, for JSON."""
    if isinstance(value, Method):
        return {"method": value.name} | {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [encode(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def decode(value: Any) -> Any:
    """The other way. Raises `Bad` for a method or a setting that is unknown."""
    if isinstance(value, dict) and "method" in value:
        cls = method_class(value["method"])
        known = {f.name for f in dataclasses.fields(cls)}
        given = {k: decode(v) for k, v in value.items() if k != "method"}
        for k in given:
            if k not in known:
                raise Bad(f"adapter.json: {cls.name} has no setting {k!r}{near(k, known)}")
        return cls(**given)
    if isinstance(value, list):
        return tuple(decode(v) for v in value)
    return value


def save_adapter(adapted: Adapted, folder: str | Path, name: str | None = None, *, classes: Sequence[str] = ()) -> None:
    """Write one adapter (default: the only one) into a folder. `classes` are the names of its classifier's labels.

    Raises `Bad` if there are several adapters and none is named.
    """
    if name is None and len(adapted.adapters) != 1:
        raise Bad(
            f"expected one adapter or a name, found {len(adapted.adapters)}: {', '.join(a.name for a in adapted.adapters)}"
        )
    adapter = adapted.adapter(name or adapted.adapters[0].name)
    distinct: list[Method] = []
    for m in adapter.at.values():
        if m not in distinct:
            distinct.append(m)
    every = sites(adapted.model)
    own = (*adapter.options.get("brought", ()), *adapter.options.get("left", ()))
    without = replaced(adapter.at) | {n for n in own if n in adapted.model.params}
    about = {
        "format": FORMAT,
        "name": adapter.name,
        "method": encode(adapter.method),
        "methods": [encode(m) for m in distinct],
        "at": [[site, list(every[site].shape), distinct.index(m)] for site, m in adapter.at.items()],
        "arrays": [[key, list(a.shape), key in adapter.trained] for key, a in adapter.arrays.items()],
        "options": {k: encode(v) for k, v in adapter.options.items()} | ({"classes": list(classes)} if classes else {}),
        "base": adapted.model.digest(without=without),
        "body": adapted.model.digest(without=without | _heads(adapted.model)),
        "brought": sorted(without - replaced(adapter.at)),
        "held": held_in(adapted.model, adapter.at),
        "family": adapted.model.arch.family,
        "head": [adapted.model.arch.head, adapted.model.arch.labels],
        "weight": adapted.weights.get(adapter.name, 1.0),
    }
    about |= {"layers": as_ranges(adapted.model.origin)} if adapted.model.origin else {}
    arrays: dict[str, Any] = {k: np.asarray(to_host(v)) for k, v in adapter.arrays.items()}
    for n in about["brought"]:
        W = adapted.model.params[n]
        arrays[BROUGHT + n] = factor(W) if form(W) == "bfloat16" else np.ascontiguousarray(to_host(widened(W)))
    about["digest"] = seal(about, {k: widened(a) for k, a in arrays.items()})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter.safetensors", arrays, {"format": "minipeft"})
    write_json(folder / "adapter.json", about)


def seal(about: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """SHA-256 of all that an adapter.json says and of the arrays that belong to it."""
    said = json.dumps({k: v for k, v in about.items() if k != "digest"}, sort_keys=True)
    return hashlib.sha256(f"{said} {digest(arrays)}".encode()).hexdigest()


def replaced(at: Mapping[str, Method]) -> set[str]:
    """The parameters that an adapter brings whole, so that it does not matter what the base has there."""
    return {site for site, m in at.items() if is_whole(m)}


def _heads(model: Model) -> set[str]:
    """The parameters outside of the body."""
    return {name for name in model.params if name.startswith(("head.", "score.", "pooler."))}


def held_in(model: Model, at: Mapping[str, Method] | None = None) -> str:
    """The type in which a base is held, as `load` has it, but for weights that the methods at these sites hold otherwise."""
    own = {site for site, m in (at or {}).items() if declared(type(m)).held}
    packed = [form(W) for name, W in model.params.items() if quantised(W) and name not in own]
    if packed and not model.config.get("quantization_config"):  # else its files hold it so
        return packed[0]
    return "bfloat16" if "bfloat16" in model.forms else np.dtype(model.dtype).name


def trained_in(folder: str | Path) -> str | None:
    """The type in which the base of a saved adapter was held, None if it does not say."""
    about = read_json(Path(folder) / "adapter.json")
    held = about.get("held") if isinstance(about, dict) else None
    return held if held in ("bfloat16", "float16", "float32", "float64", *QUANTISED) else None


@dataclass(frozen=True)
class _Said:
    """What an adapter.json says, each thing of its type."""

    name: str
    method: Method
    at: dict[str, Method]
    places: dict[str, tuple[int, ...]]
    arrays: dict[str, tuple[tuple[int, ...], bool]]  # shape, and whether it is trained
    base: str
    family: str
    head: tuple[str, int]
    weight: float
    options: dict[str, Any]
    brought: list[str]
    layers: list[tuple[int, int]]


def _said(file: Path, about: dict[str, Any]) -> _Said:
    def several(key: str, length: int = 0) -> list[Any]:
        if not isinstance(about[key], list):
            raise TypeError(f"its {key} are no list")
        if length and len({row[0] for row in about[key]}) < len(about[key]):
            raise TypeError(f"its {key} name one twice")
        return about[key]

    try:
        methods = [decode(m) for m in several("methods")]
        method = decode(about["method"])
        if not all(isinstance(m, Method) for m in [method, *methods]):
            raise TypeError("its methods are malformed")
        if not all(type(i) is int and 0 <= i < len(methods) for _, _, i in several("at", 3)):
            raise TypeError(f"its at name others than its {len(methods)} methods")
        at = {str(site): methods[i] for site, _, i in about["at"]}
        if at and not any(type(m) is type(method) or is_whole(m) for m in at.values()):
            raise TypeError(f"no site has its method {method.name}")
        arrays = {str(key): (tuple(shape), trained) for key, shape, trained in several("arrays", 3)}
        if lost := [key for key in arrays if (site := key.rpartition(":")[0]) and site not in at]:
            raise TypeError(f"{lost[0]} is at no site that it names")
        head, labels = about["head"]
        if head not in HEADS.values() or type(labels) is not int:
            raise TypeError("its head is malformed")
        if not np.isfinite(weight := float(about.get("weight", 1.0))):
            raise TypeError(f"its weight is {weight}")
        if not re.fullmatch(r"[\w.-]+", name := str(about["name"])):
            raise TypeError(f"its name is {shortly(name)}")
        options = {k: list(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        places = {str(site): tuple(shape) for site, shape, _ in about["at"]}
        brought = [str(n) for n in several("brought")]
        layers = [(start, end) for start, end in about.get("layers") or ()]
        if not all(type(n) is int for both in layers for n in both) or sum(b - a for a, b in layers) > LAYERS:
            raise TypeError("its layers are malformed")
        base, family = str(about["base"]), str(about["family"])
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as why:
        if isinstance(why, Bad):
            raise
        raise Bad(f"{file}: cannot be read: {type(why).__name__}: {why}") from None
    return _Said(name, method, at, places, arrays, base, family, (head, labels), weight, options, brought, layers)


def load_adapter(
    model: Model | Adapted, folder: str | Path, *, any_base: bool = False, name: str | None = None
) -> Adapted:
    """Attach an adapter saved by `save_adapter`; the base is held as the adapter's method holds it, quantised perhaps.

    An adapter that was trained with a classifier brings it: a base with another head gets that one. Any other adapter fits
    the same body under every head that has its sites. What it brought of its base, a resized vocabulary's table, is the base's, and
    layers are repeated as they were. `name` is another name for it.
    Raises `Bad` for files that cannot be read or do not fit each other, for arrays that are not those of its methods and their
    settings, and for an adapter trained on another base, unless `any_base`: then the sites must have the shapes they had.
    """
    adapted = model if isinstance(model, Adapted) else Adapted(model)
    folder = Path(folder)
    file, beside = folder / "adapter.json", folder / "adapter.safetensors"
    about = read_json(file)
    if not isinstance(about, dict) or about.get("format") not in (2, FORMAT):
        found = shortly(about.get("format")) if isinstance(about, dict) else type(about).__name__
        raise Bad(f"{file}: expected an adapter of format {FORMAT} or 2, found {found}")
    said = _said(file, about)
    name, at, (head, labels) = name or said.name, said.at, said.head
    if any(a.name == name for a in adapted.adapters):
        raise Bad(f"an adapter named {name!r} is attached already")
    arrays = read_tensors(beside)
    if ("digest" in about or about["format"] > 2) and about.get("digest") != seal(about, arrays):
        raise Bad(
            f"{folder}: adapter.json and adapter.safetensors are not of one save: it was interrupted, or one of them changed; "
            f"save the adapter again (a training that is started again goes on to its end)"
        )
    adapted = _of_layers(adapted, said.layers, folder)
    here = (adapted.model.arch.head, adapted.model.arch.labels)
    if (head, labels) != here and head in CLASSIFIERS and "score.weight" in replaced(at):
        if adapted.adapters:
            raise Bad(f"{folder}: this adapter brings a {head} head; attach it before the others")
        if [a.shape[:1] for key, a in arrays.items() if key.startswith("score.weight:")] != [(labels,)]:
            raise Bad(f"{file}: says that its head has {labels} labels, and {beside.name} has no such head")
        adapted = Adapted(with_head(adapted.model, head, labels))
    if said.brought:
        if adapted.adapters:
            raise Bad(f"{folder}: this adapter brings {said.brought[0]} of its base; attach it before the others")
        adapted = Adapted(_with_brought(adapted.model, said.brought, arrays, folder))
    known = sites(adapted.model)
    for site in at.keys() & known.keys():
        try:
            refuse_unfit(at[site], known[site])
        except Bad as why:
            raise Bad(f"{file}: {why}") from None
    adapted = holding(adapted, at)
    heads = said.head, (adapted.model.arch.head, adapted.model.arch.labels)
    without = replaced(at) | set(said.brought)
    same = said.base == (sha := adapted.model.digest(without=without))
    if not same and heads[0] != heads[1]:
        same = about.get("body") == adapted.model.digest(without=without | _heads(adapted.model))
    if not (any_base or same):
        was, now = about.get("held"), held_in(adapted.model, at)
        typed = f", held in {now}" if isinstance(was, str) and was != now else ""
        raise Bad(
            f"{folder}: this adapter belongs to another base ({said.family}, digest {said.base[:12]}{f', held in {was}' if typed else ''}); "
            f"this base is {adapted.model.arch.family}, digest {sha[:12]}{typed}"
        )
    for site, shape in said.places.items():
        if site not in known:
            other = (
                f" with the head {heads[1][0]!r}; it was trained with {heads[0][0]!r}" if heads[0] != heads[1] else ""
            )
            raise Bad(f"{folder}: site {site!r} is not in this model{other}{near(site, known)}")
        if tuple(known[site].shape) != shape:
            raise Bad(
                f"{folder}: site {site!r}: expected shape {shape}, found {tuple(known[site].shape)} in this model"
            )
    arrays = _fitting(beside, arrays, said.arrays)
    _refuse_undeclared(folder, said, known, arrays)
    trained = frozenset(k for k, (_, is_trained) in said.arrays.items() if is_trained)
    placed = {k: to_device(a) if k in trained else read_only(to_device(a)) for k, a in arrays.items()}
    adapter = Adapter(name, said.method, at, placed, trained, said.options)
    weights = dict(adapted.weights)
    if weights or said.weight != 1.0:
        weights = (weights or {a.name: 1.0 for a in adapted.adapters}) | {name: said.weight}
    return dataclasses.replace(adapted, adapters=(*adapted.adapters, adapter), weights=weights)


def _of_layers(adapted: Adapted, ranges: Sequence[tuple[int, int]], folder: Path) -> Adapted:
    """The same over the layers that an adapter was trained on, where they were repeated."""
    if not ranges or as_ranges(adapted.model.origin) == joined(ranges):
        return adapted
    if adapted.adapters or adapted.model.origin:
        raise Bad(f"{folder}: this adapter repeats layers of its base; attach it before others, to the base as it is")
    try:
        return Adapted(replicated(adapted.model, ranges))
    except Bad as why:
        raise Bad(f"{folder / 'adapter.json'}: layers: {why}") from None


def _refuse_undeclared(folder: Path, said: _Said, known: Mapping[str, Site], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises `Bad` unless the arrays are those that the methods declare, under their settings, at these sites."""
    file = folder / "adapter.json"
    fixed = said.options.get("fixed") or ()  # names of arrays that were left untrained
    own: dict[str, dict[str, np.ndarray]] = {}
    for key, a in arrays.items():
        site, _, array = key.rpartition(":")
        own.setdefault(site, {})[array] = a
    left: set[str] = set(arrays)
    parts: dict[Any, dict[str, bool]] = {}
    try:
        for key, it in expected(said.method, said.at, known):
            site, by = key.rpartition(":")[0], it.facts.method.name
            parts.setdefault((site, it.part), {})[key] = key in left
            if key not in left:
                if it.part is None:
                    raise Bad(f"{by} has an array {key} under its settings, which is missing")
                continue
            left.discard(key)
            if arrays[key].shape != it.shape:
                raise Bad(f"{key} of {by} has shape {it.shape} under its settings, found {arrays[key].shape}")
            if said.arrays[key][1] is not (wanted := it.trained and it.name not in fixed):
                raise Bad(f"{key} of {by} must be {'trained' if wanted else 'stored'}, found the other")
            if wrong := wrong_in(it, arrays[key], own[site]):
                raise Bad(f"{key}: {wrong}")
        for there in parts.values():
            if lost := [key for key, found in there.items() if not found and any(there.values())]:
                raise Bad(f"array {lost[0]} is missing")
        if left:
            raise Bad(f"{min(left)} is no array of its methods under their settings")
    except Bad as why:
        raise Bad(f"{file}: {why}") from None


def _with_brought(model: Model, names: Sequence[str], arrays: dict[str, np.ndarray], folder: Path) -> Model:
    """The base with the parameters of these names, taken out of the file's arrays. Raises `Bad` for one that does not fit."""
    found = {}
    for n in names:
        if (a := arrays.pop(BROUGHT + n, None)) is None:
            raise Bad(f"{folder / 'adapter.safetensors'}: array {BROUGHT + n!r} is missing")
        if a.dtype.kind != "f" or not np.isfinite(a).all():
            raise Bad(f"{folder / 'adapter.safetensors'}: {BROUGHT + n}: expected finite numbers")
        found[n] = a
    rows = next((len(found[n]) for n in OF_VOCABULARY if n in found and found[n].ndim), model.arch.vocab)
    arch = dataclasses.replace(model.arch, vocab=rows)
    expected = shapes_of(arch)
    params = dict(model.params)
    for n, a in found.items():
        if n not in params or a.shape != expected.get(n):
            raise Bad(f"{folder}: {BROUGHT + n}: expected shape {expected.get(n)} in this base, found {a.shape}")
        new = to_device(a.astype(model.dtype))
        params[n] = again(new, params[n])
    for n in OF_VOCABULARY:
        if n in params and tuple(params[n].shape) != expected[n]:
            raise Bad(f"{folder}: its vocabulary has {rows} tokens, the base's {n} {len(params[n])}")
    size = {"vocab_size": rows} if "vocab_size" in model.config else {}
    return dataclasses.replace(model, arch=arch, params=params, config={**model.config, **size})


def _fitting(path: Path, arrays: dict[str, np.ndarray], shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays in the order of `shapes`. Raises `Bad` for one that is missing, unexpected, or of another shape."""
    for key in arrays:
        if key not in shapes:
            raise Bad(f"{path}: unexpected array {key!r}{near(key, set(shapes) - set(arrays))}")
    for key, (shape, _) in shapes.items():
        if key not in arrays:
            raise Bad(f"{path}: array {key!r} is missing")
        if arrays[key].shape != shape:
            raise Bad(f"{path}: {key}: expected shape {shape}, found {arrays[key].shape}")
    return {key: arrays[key] for key in shapes}
