"""Files of PEFT for a model whose one module is a linear named `layer`, as the recorded cases have them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.places import ARCH, PLACES, Arrays, arrays_at
from minipeft.errors import Bad, near
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.reading import read_adapter_tensors, read_config
from minipeft.interop.peft.registry import method_name, spec_of
from minipeft.interop.peft.spec import ROOT, Spec, shared_to_ours, shared_to_theirs, to_ours, to_theirs
from minipeft.method import Method, Site, method_class

LAYER, BEHIND = "layer", "head"  # the linear, and one behind it that may be trained whole
MODULE = f"{ROOT}{LAYER}."
LINEAR = PLACES["linear"].sites[0]


def config_of(spec: Spec, method: Method) -> Config:
    """The configuration of a method there."""
    return spec.write(method, ARCH) | dict(peft_type=spec.peft_type, target_modules=[LAYER]) | spec.layer


def tensors_of(spec: Spec, arrays: Arrays, site: Site = LINEAR) -> dict[str, np.ndarray]:
    """Arrays of a method under PEFT's keys and in its layout."""
    arrays = arrays if spec.packing is None else spec.packing.theirs(arrays, arrays)  # type: ignore[assignment]
    out = {MODULE + suffix: a for suffix, a in to_theirs(spec.keys_of(site), arrays, ARCH).items()}
    return dict(spec.common.theirs(out | shared_to_theirs(spec.root_keys, arrays, ARCH)))


def arrays_of(spec: Spec, tensors: Arrays, site: Site = LINEAR, beside: Arrays | None = None) -> Arrays:
    """Tensors under PEFT's keys as arrays under our names; `beside` are arrays that tell of those that a file has in parts."""
    tensors = dict(spec.common.ours(tensors))
    found = {key.removeprefix(MODULE): a for key, a in tensors.items() if key.startswith(MODULE)}
    own = to_ours(spec.keys_of(site), found, site, ARCH) | shared_to_ours(spec.root_keys, tensors, ARCH)
    return own if spec.packing is None or beside is None else dict(spec.packing.ours(own, beside))


def _whole(case: Case, config: Config) -> dict[str, str]:
    """{key: input of the case} of what the configuration says is trained whole: the module behind the linear, where there is one."""
    there = case.place == "headed" and BEHIND in (config.get("modules_to_save") or ())
    return {f"{ROOT}{BEHIND}.weight": "H", f"{ROOT}{BEHIND}.bias": "c"} if there else {}


def load_whole(case: Case) -> Arrays:
    """The parameters that a case's files hold whole, by its names of them. Raises `Bad` if one is missing or has another shape."""
    assert case.folder is not None
    config, found = read_config(case.folder / "adapter"), read_adapter_tensors(case.folder / "adapter")
    out: Arrays = {}
    for key, name in _whole(case, config).items():
        if key not in found:
            raise Bad(f"adapter_model.safetensors lacks {key}")
        if found[key].shape != case.inputs[name].shape:
            raise Bad(f"{key}: expected shape {case.inputs[name].shape}, found {found[key].shape}")
        out[name] = found[key].astype(case.dtype)
    return out


def save_layer(method: Method, arrays: Arrays) -> Arrays:
    """The tensors of the file that PEFT would save, by their keys."""
    spec = spec_of(method)
    return tensors_of(spec.of(config_of(spec, method), ARCH), arrays)


def load_layer(case: Case, without: Collection[str] = ()) -> tuple[Method, Arrays]:
    """The method and its arrays, from the files of a case; of the configuration all `without` some. Raises `Bad` for files that do not fit."""
    folder = case.folder / "adapter" if case.folder is not None else None
    if folder is None:
        raise Bad("a load case lies in a folder")
    config = {k: v for k, v in read_config(folder).items() if k not in without}
    cls: Any = method_class(method_name(config))
    spec = spec_of(cls).of(config, ARCH)
    tensors = dict(spec.common.ours(read_adapter_tensors(folder)))
    try:
        settings = spec.read(config, ARCH)
    except KeyError as why:
        raise Bad(f"adapter_config.json lacks {why.args[0]!r}") from None
    known = {MODULE + k.suffix for k in spec.keys.values()}
    known |= set(_whole(case, config))
    known |= {f"{k.suffix}.0" if k.numbered else k.suffix for k in spec.root_keys.values()}
    if strange := [key for key in tensors if key not in known]:
        raise Bad(f"unexpected key {strange[0]!r}{near(strange[0], known)}")
    found = arrays_of(spec, tensors)
    method = cls(**settings | spec.read_at(config, {LAYER: LAYER}, {LAYER: found})[LAYER])
    start, trained = arrays_at(PLACES["linear"], method, np.random.default_rng(0), case.tensors)
    drawn = start
    if spec.packing is not None:
        drawn = dict(spec.packing.theirs(start, start))
        trained = tuple(drawn)

    def name(array: str) -> str:
        return MODULE + spec.keys[array].suffix if array in spec.keys else spec.root_keys[array].suffix

    for array in dict.fromkeys([*trained, *(k for k in spec.keys if k in drawn)]):
        if array not in found:
            raise Bad(f"adapter_model.safetensors lacks {name(array)}")
    for array, a in found.items():
        if array not in drawn or a.shape != drawn[array].shape:
            expected = drawn[array].shape if array in drawn else "none"
            raise Bad(f"{name(array)}: expected shape {expected}, found {a.shape}")
    every = start | (found if spec.packing is None else dict(spec.packing.ours(found, start | case.tensors)))
    return method, {k: v.astype(case.dtype) if v.dtype.kind == "f" else v for k, v in every.items()}
