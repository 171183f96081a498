"""What the steps of a training change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minipeft.engine.backend import to_host, xp
from minipeft.train.optimisers import Arrays


@dataclass
class State:
    """What the steps of a training change: the trained arrays, the optimiser's moments, what methods keep, the losses.

    `parts`, which they do not change: into how many a batch is cut.
    """

    theta: Arrays
    moments: Arrays
    own: dict[str, Arrays] = field(default_factory=dict)  # of each adapter's method
    losses: list[float] = field(default_factory=list)
    penalties: list[Any] = field(default_factory=list)  # perhaps still on the device
    parts: int = 1


def fetched(numbers: Sequence[Any]) -> list[float]:
    """Numbers of the device, and of the host among them, fetched at once."""
    there = [x for x in numbers if hasattr(x, "dtype")]
    found = iter(to_host(xp.stack([x.astype(xp.float64) for x in there])) if there else ())
    return [float(next(found) if hasattr(x, "dtype") else x) for x in numbers]
