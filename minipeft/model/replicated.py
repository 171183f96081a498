"""A model of other depth with the same arrays: ranges of its layers, one after the other.

Source: depth up-scaling, Kim et al. 2023, https://arxiv.org/abs/2312.15166, §3.1, there with weights that are trained apart.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from minipeft.errors import Bad
from minipeft.model.base import Model

OF_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def replicated(model: Model, ranges: Sequence[Sequence[int]]) -> Model:
    """The model whose layers are those of `ranges`, pairs (start, end) with the end left out, one after the other.

    (0, 2) and (1, 3) of three layers are 0, 1, 1, 2. No array is copied; `Model.origin` tells which layers they were.
    Raises `Bad` for an encoder-decoder, and ranges that are empty or beyond the layers.
    """
    arch = model.arch
    if arch.encoder_layers:
        raise Bad(f"layers of {arch.family} cannot be repeated: it has two stacks")
    for start, end in ranges:
        if not 0 <= start < end <= arch.layers:
            raise Bad(
                f"expected ranges of layers within 0 … {arch.layers}, each with one or more, found {start} … {end}"
            )
    if not ranges:
        raise Bad("expected ranges of layers, found none")
    taken = [n for start, end in ranges for n in range(start, end)]
    full = tuple(new for new, old in enumerate(taken) if arch.window_of(old) is None) if arch.window else ()
    window, full = (None, ()) if len(full) == len(taken) else (arch.window, full)
    return dataclasses.replace(
        model,
        arch=dataclasses.replace(arch, layers=len(taken), window=window, full_layers=full),
        params=_parameters(model, taken),
        origin=tuple((model.origin or range(arch.layers))[n] for n in taken),
    )


def _parameters(model: Model, taken: Sequence[int]) -> dict[str, Any]:
    """The parameters of these layers where the model's stand."""
    own: dict[int, dict[str, Any]] = {}
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for name, W in model.params.items():
        if found := OF_LAYER.fullmatch(name):
            own.setdefault(int(found[1]), {})[found[2]] = W
        else:
            (after if own else before)[name] = W
    layers = {f"layers.{new}.{rest}": W for new, old in enumerate(taken) for rest, W in own[old].items()}
    return before | layers | after


def as_ranges(origin: Sequence[int]) -> list[list[int]]:
    """The fewest ranges that are these layers.

    >>> as_ranges((0, 1, 1, 2))
    [[0, 2], [1, 3]]
    """
    return joined([(n, n + 1) for n in origin])


def joined(ranges: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same layers in the fewest ranges."""
    out: list[list[int]] = []
    for start, end in ranges:
        if out and out[-1][1] == start:
            out[-1][1] = end
        else:
            out.append([start, end])
    return out


def original(model: Model, name: str) -> str:
    """The name that a parameter had before layers were repeated."""
    found = OF_LAYER.fullmatch(name)
    return f"layers.{model.origin[int(found[1])]}.{found[2]}" if found and model.origin else name
