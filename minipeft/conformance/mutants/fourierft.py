"""Errors of FourierFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.conformance import acting
from minipeft.conformance.mutants import Settings, mutant


@mutant()
class fourier_not_normalised(Settings):
    """The inverse transform is not divided by the number of elements."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(scaling=m.scaling * acting.IN * acting.OUT)
