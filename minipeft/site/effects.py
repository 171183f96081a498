"""What a setting changes, computed for some values of it, for a slider: numbers trained, and how far W' is from W at one site."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.conformance import laws, tiny
from minipeft.errors import Bad
from minipeft.method import Method, is_weight, routes
from minipeft.settings import small

WHOLE, REAL = (1, 2, 3, 4, 6, 8), (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Effect:
    """One value of a setting: its numbers trained at a site, ‖W' − W‖/‖W‖ and the rank of W' − W."""

    value: Any
    trained: int
    share: float
    rank: int


def effects(cls: type[Method]) -> dict[str, list[Effect]]:
    """{setting: what each of its values does} of a method that changes matrices, where two values at least differ in that."""
    if not is_weight(cls) or routes(cls):
        return {}
    usual = small(cls, tiny.ARCHS["llama"])
    out = {}
    for field in dataclasses.fields(cls):
        value = getattr(usual, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        tried = [e for v in (WHOLE if isinstance(value, int) else REAL) if (e := _effect(usual, field.name, v))]
        if len({(e.trained, round(e.share, 6), e.rank) for e in tried}) > 1:
            out[field.name] = tried
    return out


def _effect(usual: Method, name: str, value: Any) -> Effect | None:
    """The first adapted matrix, its trained arrays moved as the laws move them; None for a value that is out of range, or does not fit."""
    try:
        found = laws.case(dataclasses.replace(usual, **{name: value}))
    except Bad:
        return None
    site = next((s for s in found.adapter.at if s.endswith(".weight")), None) if found else None
    if found is None or site is None:
        return None
    run = found.moved.run()
    W, W1 = (np.asarray(f(site), np.float64) for f in (run.base, run.param))
    trained = sum(
        int(a.size) for k, a in found.adapter.arrays.items() if k in found.adapter.trained and k.startswith((site, ":"))
    )
    S = np.linalg.svd(np.atleast_2d(W1 - W), compute_uv=False)
    rank = int((1e-10 * np.linalg.norm(W) < S).sum())
    return Effect(value, trained, float(np.linalg.norm(W1 - W) / np.linalg.norm(W)), rank)
