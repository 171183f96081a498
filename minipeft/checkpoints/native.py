"""Our own adapter files: a folder with adapter.json (what, where, on which base) and adapter.safetensors (the arrays)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.arrays import declared
from minipeft.attaching import holding
from minipeft.checkpoints import CLASSIFIERS, FOUR_BITS, HEADS, with_head
from minipeft.checkpoints.files import read_json, read_tensors, write_json, write_tensors
from minipeft.engine.backend import read_only, to_device, to_host
from minipeft.engine.weight import again, factor, form, widened
from minipeft.errors import Bad, near
from minipeft.method import Method, is_whole, method_class
from minipeft.model.base import Model
from minipeft.model.parts import shapes as shapes_of
from minipeft.targets import sites

FORMAT = 2
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
    without = replaced(adapter.at) | {n for n in adapter.options.get("brought", ()) if n in adapted.model.params}
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
    arrays: dict[str, Any] = {k: np.ascontiguousarray(to_host(v)) for k, v in adapter.arrays.items()}
    for n in about["brought"]:
        W = adapted.model.params[n]
        arrays[BROUGHT + n] = factor(W) if form(W) == "bfloat16" else np.ascontiguousarray(to_host(widened(W)))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter.safetensors", arrays, {"format": "minipeft"})
    write_json(folder / "adapter.json", about)


def replaced(at: Mapping[str, Method]) -> set[str]:
    """The parameters that an adapter brings whole, so that it does not matter what the base has there."""
    return {site for site, m in at.items() if is_whole(m)}


def _heads(model: Model) -> set[str]:
    """The parameters outside of the body."""
    return {name for name in model.params if name.startswith(("head.", "score.", "pooler."))}


def held_in(model: Model, at: Mapping[str, Method] | None = None) -> str:
    """The type in which a base is held, as `load` has it, but for weights that the methods at these sites hold otherwise."""
    own = {site for site, m in (at or {}).items() if declared(type(m)).held}
    packed: list[Any] = [W for name, W in model.params.items() if form(W) == "nf4" and name not in own]
    if packed and not model.config.get("quantization_config"):  # else its files hold it so
        return "nf4-double" if packed[0].double else "nf4"
    return "bfloat16" if "bfloat16" in model.forms else np.dtype(model.dtype).name


def trained_in(folder: str | Path) -> str | None:
    """The type in which the base of a saved adapter was held, None if it does not say."""
    about = read_json(Path(folder) / "adapter.json")
    held = about.get("held") if isinstance(about, dict) else None
    return held if held in ("bfloat16", "float16", "float32", "float64", *FOUR_BITS) else None


def load_adapter(
    model: Model | Adapted, folder: str | Path, *, any_base: bool = False, name: str | None = None
) -> Adapted:
    """Attach an adapter saved by `save_adapter`; the base is held as the adapter's method holds it, quantised perhaps.

    An adapter that was trained with a classifier brings it: a base with another head gets that one. Any other adapter fits
    the same body under every head that has its sites. What it brought of its base, a resized vocabulary's table, is the base's. `name` is another name for it.
    Raises `Bad` for files that cannot be read or do not fit each other, and for an adapter trained on another base,
    unless `any_base`: then the sites must have the shapes they had.
    """
    adapted = model if isinstance(model, Adapted) else Adapted(model)
    folder = Path(folder)
    about = read_json(folder / "adapter.json")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else type(about).__name__
        raise Bad(f"{folder / 'adapter.json'}: expected an adapter of format {FORMAT}, found {found}")
    try:
        for key in ("methods", "at", "arrays", "brought"):
            if not isinstance(about[key], list):
                raise TypeError(f"its {key} are no list")
        methods = [decode(m) for m in about["methods"]]
        method, at = decode(about["method"]), {site: methods[i] for site, _, i in about["at"]}
        shapes = {key: (tuple(shape), trained) for key, shape, trained in about["arrays"]}
        places = {site: tuple(shape) for site, shape, _ in about["at"]}
        name, base, family = name or str(about["name"]), str(about["base"]), str(about["family"])
        head, labels = about["head"]
        weight = float(about.get("weight", 1.0))
        if not np.isfinite(weight):
            raise TypeError(f"its weight is {weight}")
        if head not in HEADS.values() or type(labels) is not int:
            raise TypeError("its head is malformed")
        options = {k: list(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        brought = [str(n) for n in about["brought"]]
        if not all(isinstance(m, Method) for m in [method, *methods]):
            raise TypeError("its methods are malformed")
        if lost := [key for key in shapes if (site := key.rpartition(":")[0]) and site not in at]:
            raise TypeError(f"{lost[0]} is at no site that it names")
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as why:
        if isinstance(why, Bad):
            raise
        raise Bad(f"{folder / 'adapter.json'}: cannot be read: {type(why).__name__}: {why}") from None
    if any(a.name == name for a in adapted.adapters):
        raise Bad(f"an adapter named {name!r} is attached already")
    here = (adapted.model.arch.head, adapted.model.arch.labels)
    if (head, labels) != here and head in CLASSIFIERS and "score.weight" in replaced(at):
        if adapted.adapters:
            raise Bad(f"{folder}: this adapter brings a {head} head; attach it before the others")
        adapted = Adapted(with_head(adapted.model, head, labels))
    arrays = read_tensors(folder / "adapter.safetensors")
    if brought:
        if adapted.adapters:
            raise Bad(f"{folder}: this adapter brings {brought[0]} of its base; attach it before the others")
        adapted = Adapted(_with_brought(adapted.model, brought, arrays, folder))
    known = sites(adapted.model)
    adapted = holding(adapted, at)
    heads = (head, labels), (adapted.model.arch.head, adapted.model.arch.labels)
    without = replaced(at) | set(brought)
    same = base == (sha := adapted.model.digest(without=without))
    if not same and heads[0] != heads[1]:
        same = about.get("body") == adapted.model.digest(without=without | _heads(adapted.model))
    if not (any_base or same):
        was, now = about.get("held"), held_in(adapted.model, at)
        typed = f", held in {now}" if isinstance(was, str) and was != now else ""
        raise Bad(
            f"{folder}: this adapter belongs to another base ({family}, digest {base[:12]}{f', held in {was}' if typed else ''}); "
            f"this base is {adapted.model.arch.family}, digest {sha[:12]}{typed}"
        )
    for site, shape in places.items():
        if site not in known:
            other = (
                f" with the head {heads[1][0]!r}; it was trained with {heads[0][0]!r}" if heads[0] != heads[1] else ""
            )
            raise Bad(f"{folder}: site {site!r} is not in this model{other}{near(site, known)}")
        if tuple(known[site].shape) != shape:
            raise Bad(
                f"{folder}: site {site!r}: expected shape {shape}, found {tuple(known[site].shape)} in this model"
            )
    arrays = _fitting(folder / "adapter.safetensors", arrays, shapes)
    trained = frozenset(k for k, (_, is_trained) in shapes.items() if is_trained)
    placed = {k: to_device(a) if k in trained else read_only(to_device(a)) for k, a in arrays.items()}
    adapter = Adapter(name, method, at, placed, trained, options)
    weights = dict(adapted.weights)
    if weights or weight != 1.0:
        weights = (weights or {a.name: 1.0 for a in adapted.adapters}) | {name: weight}
    return dataclasses.replace(adapted, adapters=(*adapted.adapters, adapter), weights=weights)


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
