"""minipeft: every parameter-efficient fine-tuning method, readable, checked and runnable, on NumPy.

>>> import minipeft
>>> len(minipeft.METHODS) > 30
True

Each method's class is an attribute too, by its name: see `dir(minipeft)`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Adapted": "adapted",
    "Arch": "model.arch",
    "Bad": "errors",
    "Batch": "model.batch",
    "Method": "method",
    "Model": "model.base",
    "Site": "method",
    "Step": "method",
    "attach": "attaching",
    "batch": "model.batch",
    "combine": "arithmetic",
    "fit": "train",
    "generate": "model.generate",
    "load": "checkpoints",
    "load_adapter": "checkpoints.native",
    "merge": "merging",
    "load_peft": "interop.peft.reading",
    "replicated": "model.replicated",
    "save_adapter": "checkpoints.native",
    "save_merged": "checkpoints.merged",
    "save_model": "checkpoints",
    "save_peft": "interop.peft.writing",
    "use": "engine.backend",
    "value_and_grad": "engine",
}

__all__ = ["METHODS", "__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    """Names are loaded when first used, so that importing the package costs next to nothing: functions, classes of methods, modules."""
    if name == "METHODS":
        method = importlib.import_module("minipeft.method")
        method.load_methods()
        return method.METHODS
    if name in _WHERE:
        return getattr(importlib.import_module(f"minipeft.{_WHERE[name]}"), name)
    if name.startswith("_") or not name.isidentifier():
        raise AttributeError(f"module 'minipeft' has no attribute {name!r}")
    from importlib.util import find_spec

    if find_spec(f"minipeft.{name}"):
        return importlib.import_module(f"minipeft.{name}")
    if name in (classes := _classes()):
        return classes[name]
    near = importlib.import_module("minipeft.errors").near(name, [*__all__, *classes])
    raise AttributeError(f"module 'minipeft' has no attribute {name!r}{near}", name=name, obj=sys.modules[__name__])


def _classes() -> dict[str, Any]:
    """The methods of the package, by the names of their classes."""
    every = __getattr__("METHODS").values()
    return {cls.__name__: cls for cls in every if cls.__module__.startswith("minipeft.methods.")}


def __dir__() -> list[str]:
    return [*__all__, *sorted(_classes())]
