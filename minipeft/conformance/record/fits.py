"""Cases of a method's own training: its rates, its penalty, what it does between steps; gradients are clipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.places import Arrays
from minipeft.conformance.record.one import finished, generator, single
from minipeft.conformance.record.steps import trained

OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": dict(kind="sgd", lr=0.005, momentum=0.5, weight_decay=0.1, steps=3),
    "adamw": dict(kind="adamw", lr=0.05, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, steps=4),
}


def fits(inputs: Arrays, arrays: Arrays, about: Arrays, outputs: dict[str, np.ndarray]) -> Iterator[Case]:
    """Training by two optimisers. One clips every step far down, the other has a limit that some steps are below."""
    for name in OPTIMISERS:
        yield fit(inputs, arrays, about | dict(variant=name), outputs, OPTIMISERS[name])


def fit(inputs: Arrays, arrays: Arrays, about: Arrays, outputs: dict[str, np.ndarray], settings: Arrays) -> Case:
    """One of them, with a limit that follows from the norms of the gradients where none is clipped."""
    rng = generator(about["method"], "fit", about["variant"])
    target = {f"target.{k}": single(v + rng.standard_normal(v.shape)) for k, v in outputs.items()}
    roles = about["roles"] | dict.fromkeys(target, "target")
    case = Case(
        check="fit", ask="fit", inputs={**inputs, **arrays, **target}, options=dict(optimiser=settings),
        **(about | dict(roles=roles, since="0.2")),
    )  # fmt: skip
    norms = trained(case)[1]
    low, high = min(norms), max(norms)
    limit = float(f"{low / 3 if settings['kind'] == 'sgd' else (low * high) ** 0.5:.3g}")
    case = dataclasses.replace(case, options=dict(optimiser={**settings, "clip": limit}), k=8.0 * settings["steps"])
    return finished(case)
