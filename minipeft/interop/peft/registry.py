"""Which methods PEFT has: those with a file in this folder."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from minipeft.arrays import declared
from minipeft.errors import Bad, near
from minipeft.interop.peft.fields import Config, Field
from minipeft.interop.peft.spec import Spec
from minipeft.method import METHODS, Method, load_methods
from minipeft.shown import shortly

HERE = Path(__file__).parent


@cache
def spec_named(name: str) -> Spec | None:
    """How PEFT writes the method of this name, None if it has no file here."""
    if not name.isidentifier() or not (HERE / f"{name}.py").exists():
        return None
    return getattr(importlib.import_module(f"{__package__}.{name}"), "SPEC", None)


def specs() -> dict[str, Spec]:
    """All of them, by our method."""
    load_methods()
    return {name: spec for name in sorted(METHODS) if (spec := spec_named(name))}


def spec_of(method: Method | type[Method]) -> Spec:
    """How this method is written by PEFT: by its own file, or that of the method it is made of. Raises `Bad` for one PEFT has not."""
    cls: Any = method if isinstance(method, type) else type(method)
    if spec := _found(cls):
        return spec
    raise Bad(f"{cls.name} cannot be written for PEFT: it has no such method; PEFT has {', '.join(specs())}")


def has(cls: type[Method]) -> bool:
    """Whether PEFT has this method, or one that it is made of."""
    return _found(cls) is not None


def _found(cls: Any) -> Spec | None:
    """The method's own, or that of a parent which computes the same from the same arrays."""
    for c in cls.__mro__:
        if spec := spec_named(c.__dict__.get("name", "")):
            return spec if c is cls or _computes(c) == _computes(cls) else None
    return None


def _computes(cls: Any) -> tuple[Any, ...]:
    functions = (getattr(cls, name, None) for name in ("change", "weight", "apply", "forward"))
    return (*declared(cls).arrays, *functions)


def peft_types() -> dict[str, Mapping[str, Field]]:
    """{peft_type: every field of its configuration}."""
    return {spec.peft_type: spec.known for spec in specs().values()}


def kind_of(config: Mapping[str, Any], where: Any = "adapter_config.json") -> str:
    """The peft_type of a configuration. Raises `Bad`, with near misses, for one that is not read here."""
    kind, known = config.get("peft_type"), peft_types()
    if not isinstance(kind, str) or kind not in known:
        raise Bad(
            f"{where}: peft_type {shortly(kind)} is not supported; expected one of {', '.join(sorted(known))}"
            f"{near(str(kind), known)}"
        )
    return kind


def seen(config: Config, naming: Any, tensors: Mapping[str, Any]) -> Config:
    """A configuration as PEFT takes it on these modules and with these tensors."""
    kind = kind_of(config)
    for spec in specs().values():
        if spec.peft_type == kind:
            config = spec.seen(config, naming, tensors)
    return config


def method_name(config: Config) -> str:
    """Our method for their configuration. Raises `Bad`, with near misses, for what we do not compute."""
    kind = kind_of(config)
    own = {name: spec for name, spec in specs().items() if spec.peft_type == kind}
    for spec in own.values():
        spec.examine(config)
    claimed = [name for name, spec in own.items() if spec.claims and spec.claims(config)]
    name = next(iter([*claimed, *(n for n, s in own.items() if s.claims is None)]))
    return own[name].read_as or name
