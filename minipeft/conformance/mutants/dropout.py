"""Errors of dropout: left out, of another rate, or on another input. The mask is given."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Tensors, has, mutant
from minipeft.conformance.own import Own, method_of
from minipeft.engine import ops

DROPS = has("dropout")


def rate(case: Case) -> float:
    """p."""
    return float(method_of(case).dropout)  # type: ignore[attr-defined]


class Masks(Tensors):
    """A mutant that makes something else of the mask; `keep` is 1 where an element stays."""

    def mask(self, keep: Any, p: float) -> Any:
        return keep

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs | ({"keep": self.mask(inputs["keep"], rate(case))} if "keep" in inputs else {}), arrays


@mutant("dropout", "torchtune #996; aprender #2170", DROPS)
class dropout_ignored(Tensors):
    """Dropout is never applied."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return {k: v for k, v in inputs.items() if k != "keep"}, arrays


@mutant("dropout", "", DROPS)
class dropout_unscaled(Masks):
    """What is kept is not divided by 1 − p."""

    def mask(self, keep: Any, p: float) -> Any:
        return keep * (1 - p)


@mutant("dropout", "", DROPS)
class dropout_divided_by_rate(Masks):
    """What is kept is divided by p, the rate of dropping, not by 1 − p."""

    def mask(self, keep: Any, p: float) -> Any:
        return keep * ((1 - p) / p)


@mutant("dropout", "", DROPS)
class dropout_scaled_down(Masks):
    """What is kept is multiplied by 1 − p, not divided."""

    def mask(self, keep: Any, p: float) -> Any:
        return keep * (1 - p) ** 2


@mutant("dropout", "", DROPS)
class dropout_inverted(Masks):
    """What is to be kept is dropped, and the other way round: the mask is inverted."""

    def mask(self, keep: Any, p: float) -> Any:
        return 1 - keep


@mutant("dropout", "", DROPS)
class dropout_inverted_and_divided_by_rate(Masks):
    """p is taken for the rate of keeping: the mask is inverted, and what stays is divided by p."""

    def mask(self, keep: Any, p: float) -> Any:
        return (1 - keep) * ((1 - p) / p)


def dropped(case: Case, inputs: Arrays) -> Arrays:
    """The inputs after the mask, which is used up."""
    rest = {k: v for k, v in inputs.items() if k != "keep"}
    return rest | {"x": inputs["x"] * inputs["keep"] * (1 / (1 - rate(case)))}


@mutant("dropout", "", DROPS)
class dropout_on_the_base(Tensors):
    """Dropout acts on the input of the base too."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return (dropped(case, inputs) if "keep" in inputs else inputs), arrays


def of_the_base(inputs: Arrays) -> Any:
    return ops.linear(inputs["x"], inputs["W"], inputs["b"])


@mutant("dropout", "", DROPS)
class dropout_on_the_base_alone(Own):
    """Dropout acts on the input of the base, and not on that of the change."""

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        if "keep" not in inputs or case.place != "linear":
            return super().outputs(case, inputs, arrays)
        plain = {k: v for k, v in inputs.items() if k != "keep"}
        y = super().outputs(case, plain, arrays)["y"]
        return dict(y=y - of_the_base(plain) + of_the_base(dropped(case, inputs)))


@mutant("dropout", "", DROPS)
class dropout_twice(Masks):
    """Dropout acts twice with one mask: what is kept is divided by 1 − p once more."""

    def mask(self, keep: Any, p: float) -> Any:
        return keep / (1 - p)


@mutant("dropout", "", DROPS)
class dropout_of_the_first_row(Masks):
    """The first row's mask serves all rows of the batch."""

    def mask(self, keep: Any, p: float) -> Any:
        return keep[:1] + 0 * keep


@mutant("dropout", "", DROPS)
class bias_in_the_dropped_branch(Outputs):
    """In training the base's bias is added in the branch that drops as well."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] + inputs["b"]) if "keep" in inputs else out


@mutant("dropout", "", DROPS)
class dropout_in_evaluation(Tensors):
    """Dropout acts in evaluation too."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        if not rate(case) or case.place != "linear" or "keep" in inputs:
            return inputs, arrays
        keep = np.random.default_rng(0).random(inputs["x"].shape) >= rate(case)
        return inputs | {"keep": keep.astype(inputs["x"].dtype)}, arrays
