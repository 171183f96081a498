"""Our own adapter files: a folder with adapter.json (what, where, on which base) and adapter.safetensors (the arrays)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.engine.backend import read_only, to_device, to_host
from minipeft.errors import Bad, near
from minipeft.method import Method, method_class
from minipeft.model.arch import Model
from minipeft.run import Adapted, Adapter, sites

FORMAT = 1


def _encode(value: Any) -> Any:
    if isinstance(value, Method):
        return {"method": value.name} | {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_encode(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and "method" in value:
        cls = method_class(value["method"])
        known = {f.name for f in dataclasses.fields(cls)}
        given = {k: _decode(v) for k, v in value.items() if k != "method"}
        for k in given:
            if k not in known:
                raise Bad(f"adapter.json: {cls.name} has no setting {k!r}{near(k, known)}")
        return cls(**given)
    if isinstance(value, list):
        return tuple(_decode(v) for v in value)
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
    about = {
        "format": FORMAT,
        "name": adapter.name,
        "method": _encode(adapter.method),
        "methods": [_encode(m) for m in distinct],
        "at": {site: distinct.index(m) for site, m in adapter.at.items()},
        "trained": sorted(adapter.trained),
        "options": {k: _encode(v) for k, v in adapter.options.items()},
        "base": adapted.model.digest(),
        "family": adapted.model.arch.family,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {k: np.ascontiguousarray(to_host(v)) for k, v in adapter.arrays.items()}
    write_tensors(folder / "adapter.safetensors", arrays, {"format": "minipeft"})
    write_json(folder / "adapter.json", about)


def load_adapter(model: Model | Adapted, folder: str | Path, *, any_base: bool = False) -> Adapted:
    """Attach an adapter saved by `save_adapter`. Raises `Bad` if it was trained on another base, unless `any_base`."""
    from minipeft.checkpoints.files import read_json, read_tensors

    adapted = model if isinstance(model, Adapted) else Adapted(model)
    folder = Path(folder)
    about = read_json(folder / "adapter.json")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else type(about).__name__
        raise Bad(f"{folder / 'adapter.json'}: expected an adapter of format {FORMAT}, found {found}")
    if not any_base and about["base"] != adapted.model.digest():
        raise Bad(
            f"{folder}: this adapter belongs to another base ({about['family']}, digest {about['base'][:12]}); "
            f"this base is {adapted.model.arch.family}, digest {adapted.model.digest()[:12]}"
        )
    try:
        methods = [_decode(m) for m in about["methods"]]
        method, at = _decode(about["method"]), {site: methods[i] for site, i in about["at"].items()}
    except (KeyError, TypeError, IndexError) as why:
        raise Bad(f"{folder / 'adapter.json'}: cannot be read: {why}") from None
    arrays = read_tensors(folder / "adapter.safetensors")
    known, trained = sites(adapted.model), frozenset(about["trained"])
    for site in at:
        if site not in known:
            raise Bad(f"{folder}: site {site!r} is not in this model{near(site, known)}")
    if lost := sorted(trained - set(arrays)):
        raise Bad(f"{folder / 'adapter.safetensors'}: trained array {lost[0]!r} is missing{near(lost[0], arrays)}")
    for key in arrays:
        site = key.rpartition(":")[0]
        if site and site not in at:
            raise Bad(
                f"{folder / 'adapter.safetensors'}: unexpected array {key!r}: the adapter is not attached at {site}"
            )
    held = {k: to_device(v) if k in trained else read_only(to_device(v)) for k, v in arrays.items()}
    if any(a.name == about["name"] for a in adapted.adapters):
        raise Bad(f"an adapter named {about['name']!r} is attached already")
    options = {k: list(v) if isinstance(v, list) else v for k, v in about["options"].items()}
    adapter = Adapter(about["name"], method, at, held, trained, options)
    return dataclasses.replace(adapted, adapters=(*adapted.adapters, adapter))
