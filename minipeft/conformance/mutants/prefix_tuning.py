"""Errors of prefix tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.conformance.places import place_at
from minipeft.conformance.record.variants import More
from minipeft.engine import ops

FLAT = ("E", "F", "A2", "c2")  # arrays with a number for each of all keys and values, along an axis of that length


class Blocks(Tensors):
    """A mutant that takes the keys and values of layers otherwise: `order` of them, as they lie one after the other."""

    def order(self, n: int) -> list[int]:
        return list(range(n))

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        shape = place_at(case.place, case.inputs).sites[0].shape  # heads of keys, width
        width = shape[0] * shape[1]

        def moved(x: Any) -> Any:
            axis = 0 if x.ndim == 1 or "A2" in arrays else 1
            n = x.shape[axis] // width
            at = np.concatenate([np.arange(k * width, (k + 1) * width) for k in self.order(n)])
            return x[at] if axis == 0 else x[:, at]

        flat = [k for k in FLAT if k in arrays and not (k == "E" and "A2" in arrays)]
        return inputs, arrays | {k: moved(arrays[k]) for k in flat}


@mutant("forward grad")
class keys_and_values_swapped(Blocks):
    """The prefix's keys are taken as values and the other way round."""

    def order(self, n: int) -> list[int]:
        return [k ^ 1 for k in range(n)]


@mutant("forward")
class all_keys_before_all_values(Blocks):
    """The keys of all layers are taken to lie before the values of all."""

    def order(self, n: int) -> list[int]:
        return [k // 2 + (n // 2) * (k % 2) for k in range(n)]


@mutant("forward")
class layers_turned_round(Blocks):
    """The first layer has the last one's prefix."""

    def order(self, n: int) -> list[int]:
        return [n - 2 - k + 2 * (k % 2) for k in range(n)]


class Keys(Tensors):
    """A mutant that makes something else of each prefix key, (p, e), of a head."""

    turn: Callable[[Any], Any]

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        g, e = place_at(case.place, case.inputs).sites[0].shape
        if "A2" in arrays or "F" in arrays:
            return inputs, arrays
        E, parts = arrays["E"], []
        for at in range(0, E.shape[1], e):
            block = E[:, at : at + e]
            parts.append(self.turn(block) if at // (g * e) % 2 == 0 else block)
        return inputs, arrays | {"E": ops.concatenate(*parts, axis=1)}


@mutant("forward")
class prefix_has_positions(Keys):
    """The prefix's keys are rotated as those of a text at positions 0 … p − 1."""

    def turn(self, block: Any) -> Any:
        half = block.shape[1] // 2
        angle = np.arange(block.shape[0])[:, None] * 10000.0 ** (-np.arange(half) / half)
        c, s = (f(angle).astype(block.dtype) for f in (np.cos, np.sin))
        a, b = block[:, :half], block[:, half:]
        return ops.concatenate(a * c - b * s, b * c + a * s, axis=1)


CASES = {"projected": More(dict(hidden=5))}
