"""Of numbers that are drawn the moments alone are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from minipeft.conformance.cases import Case


def shapes_of(case: Case) -> dict[str, tuple[int, ...]]:
    """The arrays that are to be given, by name: those that are wanted, or of whose numbers moments are."""
    if case.tolerance == "DRAWN":
        return {k: (case.options["times"], *shape) for k, shape in case.options["shapes"].items()}
    return {k: v.shape for k, v in case.want.items()}


MOMENTS: dict[str, Any] = {  # of numbers that are drawn, by what a wanted tensor's name ends with
    "mean": lambda a: a.mean(),
    "square": lambda a: (a * a).mean(),
    "kurtosis": lambda a: (a**4).mean() / (a * a).mean() ** 2,
}


def moment(name: str, got: Mapping[str, np.ndarray]) -> np.ndarray:
    """`A.square` of what was drawn, and other moments: a number."""
    array, _, which = name.rpartition(".")
    return np.asarray(MOMENTS[which](np.asarray(got[array], np.float64)))
