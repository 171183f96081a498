"""Our own adapter files: a folder with adapter.json (what, where, on which base) and adapter.safetensors (the arrays)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.checkpoints import CLASSIFIERS, HEADS, with_head
from minipeft.engine.backend import read_only, to_device, to_host
from minipeft.errors import Bad, near
from minipeft.method import Method, method_class
from minipeft.model.arch import Model
from minipeft.run import Adapted, Adapter, sites

FORMAT = 2


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


def save_adapter(adapted: Adapted, folder: str | Path, name: str | None = None) -> None:
    """Write one adapter (default: the only one) into a folder. Raises `Bad` if there are several and none is named."""
    from minipeft.checkpoints.files import write_json, write_tensors

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
    about = {
        "format": FORMAT,
        "name": adapter.name,
        "method": encode(adapter.method),
        "methods": [encode(m) for m in distinct],
        "at": [[site, list(every[site].shape), distinct.index(m)] for site, m in adapter.at.items()],
        "arrays": [[key, list(a.shape), key in adapter.trained] for key, a in adapter.arrays.items()],
        "options": {k: encode(v) for k, v in adapter.options.items()},
        "base": adapted.model.digest(without=replaced(adapter.at)),
        "family": adapted.model.arch.family,
        "head": [adapted.model.arch.head, adapted.model.arch.labels],
    }
    arrays = {k: np.ascontiguousarray(to_host(v)) for k, v in adapter.arrays.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter.safetensors", arrays, {"format": "minipeft"})
    write_json(folder / "adapter.json", about)


def replaced(at: Mapping[str, Method]) -> set[str]:
    """The parameters that an adapter brings whole, so that it does not matter what the base has there."""
    return {site for site, m in at.items() if m.name == "full"}


def load_adapter(model: Model | Adapted, folder: str | Path, *, any_base: bool = False) -> Adapted:
    """Attach an adapter saved by `save_adapter`; the base is held as the adapter's method holds it, quantised perhaps.

    An adapter that was trained with a classifier brings it: a base with another head gets that one.
    Raises `Bad` for files that cannot be read or do not fit each other, and for an adapter trained on another base,
    unless `any_base`: then the sites must have the shapes they had.
    """
    from minipeft.checkpoints.files import read_json, read_tensors

    adapted = model if isinstance(model, Adapted) else Adapted(model)
    folder = Path(folder)
    about = read_json(folder / "adapter.json")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else type(about).__name__
        raise Bad(f"{folder / 'adapter.json'}: expected an adapter of format {FORMAT}, found {found}")
    try:
        methods = [decode(m) for m in about["methods"]]
        method, at = decode(about["method"]), {site: methods[i] for site, _, i in about["at"]}
        shapes = {key: (tuple(shape), trained) for key, shape, trained in about["arrays"]}
        places = {site: tuple(shape) for site, shape, _ in about["at"]}
        name, base, family = str(about["name"]), str(about["base"]), str(about["family"])
        head, labels = about["head"]
        if head not in HEADS.values() or type(labels) is not int:
            raise TypeError("its head is malformed")
        options = {k: list(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        if not all(isinstance(m, Method) for m in [method, *methods]):
            raise TypeError("its methods are malformed")
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as why:
        if isinstance(why, Bad):
            raise
        raise Bad(f"{folder / 'adapter.json'}: cannot be read: {type(why).__name__}: {why}") from None
    if any(a.name == name for a in adapted.adapters):
        raise Bad(f"an adapter named {name!r} is attached already")
    if (head, labels) != (adapted.model.arch.head, adapted.model.arch.labels) and head in CLASSIFIERS:
        if adapted.adapters:
            raise Bad(f"{folder}: this adapter brings a {head} head; attach it before the others")
        adapted = Adapted(with_head(adapted.model, head, labels))
    known = sites(adapted.model)
    if held := {s: W for s, m in at.items() if s in known and (W := m.base(known[s])) is not None}:
        quantised = dataclasses.replace(adapted.model, params={**adapted.model.params, **held})
        adapted = dataclasses.replace(adapted, model=quantised)
    if not any_base and base != (here := adapted.model.digest(without=replaced(at))):
        raise Bad(
            f"{folder}: this adapter belongs to another base ({family}, digest {base[:12]}); "
            f"this base is {adapted.model.arch.family}, digest {here[:12]}"
        )
    for site, shape in places.items():
        if site not in known:
            raise Bad(f"{folder}: site {site!r} is not in this model{near(site, known)}")
        if tuple(known[site].shape) != shape:
            raise Bad(
                f"{folder}: site {site!r}: expected shape {shape}, found {tuple(known[site].shape)} in this model"
            )
    arrays = _fitting(folder / "adapter.safetensors", read_tensors(folder / "adapter.safetensors"), shapes)
    trained = frozenset(k for k, (_, is_trained) in shapes.items() if is_trained)
    placed = {k: to_device(a) if k in trained else read_only(to_device(a)) for k, a in arrays.items()}
    adapter = Adapter(name, method, at, placed, trained, options)
    return dataclasses.replace(adapted, adapters=(*adapted.adapters, adapter))


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
