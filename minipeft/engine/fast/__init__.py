"""Replacements: what the text computes, faster. Nothing here says what is computed; that is the text, which reads without it.

A replacement is a function of the same signature and contract as an op, or as another function of the text that is marked
`replaceable`. It registers itself with `replaces`, and is taken on the backend that it names, unless `minipeft.use(fast=False)` or
MINIPEFT_FAST=0 asks for the text everywhere. The tests compare every replacement with its text, values and gradients.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from inspect import signature

from minipeft.engine import backend
from minipeft.engine.fast import blocks
from minipeft.engine.tensor import ASKED, Replacement, take, taking

FILES = {
    "numpy": ("host", "compiled"),
    "cupy": ("cuda", "host"),
}  # of this folder, which register a backend's replacements
REPLACEMENTS: dict[str, dict[str, Replacement]] = {}  # backend -> name -> replacement


def replaces(text: Callable, backend: str, when: Callable[..., bool] | None = None) -> Callable:
    """Register the function below as a replacement of `text` on a backend, where `when`, called as it is, says that it may.

    Where it may not, the one that was registered before it is asked.
    """

    def register(by: Callable) -> Callable:
        asks = tuple(what for what in ASKED if what in signature(by).parameters)
        known = REPLACEMENTS.setdefault(backend, {})
        known[text.__name__] = Replacement(by, when, asks, known.get(text.__name__))
        return by

    return register


def install(name: str, fast: bool) -> None:
    """Take the replacements of this backend, or none."""
    for file in FILES.get(name, ()) if fast else ():
        importlib.import_module(f"{__name__}.{file}")
    take(REPLACEMENTS.get(name, {}) if fast else {})


@contextlib.contextmanager
def text() -> Iterator[None]:
    """Within this context the text is computed, without any replacement."""
    with taking({}), blocks.in_turn():  # sums in another order would be other bits of the text
        yield


backend.when_chosen(install)
