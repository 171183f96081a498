"""Tapes of methods on a tiny model, and the few that are shown side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from minipeft.arrays import needs
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad, Unfit
from minipeft.method import Method, method_class
from minipeft.settings import small
from minipeft.tape.record import Tape, record

ROWS, TOKENS = 2, 16
LAYERS = 2
MOST = 64  # layers


@dataclass(frozen=True)
class Example:
    """A method to be shown: attached where it usually is, or in so many of the uppermost layers only."""

    method: str
    label: str = ""
    top: int | None = None


USUAL = tuple(Example(**given) for given in json.loads((Path(__file__).parent / "methods.json").read_text("utf-8")))


def example(
    method: Method | str,
    *,
    given: Mapping[str, Any] = MappingProxyType({}),
    family: str | None = None,
    layers: int = LAYERS,
    top: int | None = None,
    label: str = "",
) -> Tape:
    """The tape of a method on a tiny random model of so many layers, attached in its `top` layers alone if that is told.

    A method that is named has sizes that suit the model, but for the settings that are `given`. `family` is one of
    `tiny.ARCHS`, or else the first that the method fits. Raises `Bad` for what is unknown or does not fit.
    """
    if not 1 <= layers <= MOST or not 1 <= (layers if top is None else top) <= layers:
        raise Bad(f"layers: expected 1 … {MOST}, of them as many on top, found {layers} and {top}")
    families = [family] if family else list(tiny.ARCHS)
    for last, name in enumerate(families, 1):
        model = tiny.model(name, np.float32, layers=layers)
        made = small(method_class(method), model.arch) if isinstance(method, str) else method
        made = dataclasses.replace(made, **given)
        batch = tiny.example(model, ROWS, TOKENS, tasks=getattr(made, "n_tasks", 1))
        where = None if top in (None, layers) else range(layers - top, layers)
        try:
            adapted = attach(model, made, layers=where, data=[batch] if needs(made) else ())
        except Unfit:
            if last == len(families):
                raise
            continue
        places = f", in {'the top layer' if top == 1 else f'the {top} top layers'} alone" if where else ""
        about = f"{made!r}{places}; {name}, {layers} layers, width {model.arch.d}; {batch.tokens} tokens in {ROWS} rows, {model.dtype}"
        return record(adapted, batch, label=label or made.name, about=about)
    raise AssertionError("unreachable")


def by_layer(method: Method | str, *, layers: int = LAYERS, **how: Any) -> list[Tape | str]:
    """Its tapes when it is attached from layer 0, 1, … on, 0 being wherever it goes by itself; a line where it cannot be.

    `how` is as for `example`.
    """

    def from_layer(k: int) -> Tape | str:
        try:
            return example(method, layers=layers, top=layers - k, **how)
        except Bad as why:
            return str(why)

    return [from_layer(k) for k in range(layers)]


def side_by_side(family: str | None = None, layers: int = LAYERS) -> list[Tape]:
    """The tapes of a few methods that show what is kept when: `methods.json`."""
    return [example(e.method, family=family, layers=layers, top=e.top, label=e.label) for e in USUAL]
