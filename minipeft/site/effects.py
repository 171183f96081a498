"""What a setting changes, computed for some values of it, for a slider: numbers trained, and the change that comes of them.

Of a method that changes matrices the change is W' − W at the first of them, of any other h' − h of the last hidden state.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.conformance import laws, tiny
from minipeft.engine.backend import to_host
from minipeft.errors import Bad
from minipeft.method import Method, is_weight, routes
from minipeft.settings import choices, small

WHOLE, REAL = (1, 2, 3, 4, 6, 8), (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LEAST = 1e-10  # of what is changed: singular values below are rounding
STEPS = 127  # from no change to the largest of a slider, in a picture


@dataclass(frozen=True)
class Effect:
    """One value of a setting: its numbers trained, the change, and how large it is of what it changes; the change's singular values."""

    value: Any
    trained: int
    share: float
    change: np.ndarray
    values: np.ndarray

    @property
    def rank(self) -> int:
        """How many directions the change has."""
        return len(self.values)


def effects(cls: type[Method]) -> dict[str, list[Effect]]:
    """{setting: what each of its values does}, where two values at least differ in that."""
    usual = small(cls, next(iter(tiny.ARCHS.values())))
    out = {}
    for name, values in _tried(cls, usual).items():
        found = [e for v in values if (e := _effect(usual, name, v))]
        if len({(e.trained, round(e.share, 6), e.rank) for e in found}) > 1:
            out[name] = found
    return out


def _tried(cls: type[Method], usual: Method) -> dict[str, Sequence[Any]]:
    options = {n: c.options for n, c in choices(cls).items()}
    out: dict[str, Sequence[Any]] = {}
    for field in dataclasses.fields(cls):
        value = getattr(usual, field.name)
        if isinstance(value, bool):
            out[field.name] = (False, True)
        elif isinstance(value, int | float):
            out[field.name] = WHOLE if isinstance(value, int) else REAL
        elif field.name in options:
            out[field.name] = options[field.name]
    return out


def _effect(usual: Method, name: str, value: Any) -> Effect | None:
    """With trained arrays moved as the laws move them; None for a value that is out of range, or does not fit."""
    try:
        found = next(
            c for family in tiny.ARCHS if (c := laws.case(dataclasses.replace(usual, **{name: value}), family))
        )
        h, h1, site = _changed(found)
    except (Bad, StopIteration):
        return None
    own = (site, ":") if site else ("",)
    trained = sum(int(found.adapter.arrays[k].size) for k in found.adapter.trained if k.startswith(own))
    D, whole = h1 - h, float(np.linalg.norm(h))
    S = np.linalg.svd(D, compute_uv=False)
    return Effect(value, trained, float(np.linalg.norm(D)) / whole, D, S[LEAST * whole < S])


def _changed(case: laws.Case) -> tuple[np.ndarray, np.ndarray, str]:
    """What is changed, before and after, as matrices; and the site, '' for the whole model."""
    site = next((s for s in case.adapter.at if s.endswith((".weight", ".bias"))), "")
    if site and is_weight(case.method) and not routes(type(case.method)):
        run = case.moved.run()
        return _matrix(run.base(site)), _matrix(run.param(site)), site
    h, h1 = (_matrix(a.forward(case.batch).hidden) for a in (Adapted(case.model), case.moved))
    return h, h1[-len(h) :], ""


def _matrix(a: Any) -> np.ndarray:
    """A matrix as it is, a vector as one, of several texts the first."""
    found = np.atleast_2d(np.asarray(to_host(a), np.float64))
    return found[0] if found.ndim == 3 else found


def sliders(cls: type[Method], found: Mapping[str, Sequence[Effect]]) -> str:
    """HTML of a slider for each setting, which begins at its usual value; what it shows is there already, effects.js only chooses."""
    usual = {f.name: f.default for f in dataclasses.fields(cls)}
    out = []
    for name, tried in found.items():
        values = [e.value for e in tried]
        at = values.index(usual[name]) if usual[name] in values else len(tried) // 2
        out.append(_slider(name, tried, at, "W" if is_weight(cls) else "h"))
    return "\n".join(out)


def _slider(name: str, tried: Sequence[Effect], at: int, letter: str) -> str:
    most, top = (
        max(float(a.max(initial=0.0)) for a in of) or 1.0
        for of in ([abs(e.change) for e in tried], [e.values for e in tried])
    )
    rows = [
        dict(
            said=f"{name} = {e.value}",
            facts=[
                f"{e.trained:,} numbers trained",
                f"‖{letter}′ − {letter}‖ = {e.share:.3g} ‖{letter}‖",
                f"rank {e.rank}",
            ],
            wide=e.change.shape[1],
            change=base64.b64encode((e.change / most * STEPS).round().astype(np.int8).tobytes()).decode(),
            values=[float(f"{v / top:.3g}") for v in e.values],
        )
        for e in tried
    ]
    shown = rows[at]
    return (
        f'<div class="effect" data-rows="{html.escape(json.dumps(rows))}">'
        f"<label><code>{html.escape(str(shown['said']))}</code>"
        f'<input type="range" min="0" max="{len(tried) - 1}" value="{at}" aria-label="{name}"></label>'
        f"<canvas></canvas><svg viewBox='0 0 100 60' preserveAspectRatio='none'></svg>"
        f"<output>{html.escape(' · '.join(shown['facts']))}</output></div>"  # type: ignore[arg-type]
    )
