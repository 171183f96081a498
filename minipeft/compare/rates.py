"""Learning rates for AdamW that suit methods on small models, as data."""

import json
from pathlib import Path

from minipeft.method import Method

RATES: dict[str, float] = json.loads(Path(__file__).with_name("rates.json").read_text("utf-8"))
USUAL = 1e-2  # of a method that has none of its own


def usual_rate(method: type[Method]) -> float:
    """The rate of a method, or else of the nearest that it is derived from."""
    names = (getattr(cls, "name", "") for cls in method.__mro__)
    return next((RATES[name] for name in names if name in RATES), USUAL)
