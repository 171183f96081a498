"""What can be measured: sizes, tasks and methods; what a step of a size multiplies.

`methods.json` holds the methods that a step is measured of: their settings here, `ours`, and there, by the name of a configuration of
PEFT (`peft`) or of a stand-in for what it has not (`torch`). "{r}" is the rank of a size; `also` are sizes that few are measured at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minipeft.errors import Bad, near

# width, layers, heads, tokens a row, rows, vocabulary
SIZES = {
    "S": dict(d=64, layers=2, heads=4, t=64, b=8, vocab=128),
    "M": dict(d=256, layers=4, heads=4, t=128, b=8, vocab=512),
    "L": dict(d=512, layers=8, heads=8, t=128, b=8, vocab=4096),
    "XL": dict(d=1024, layers=12, heads=16, t=512, b=8, vocab=4096),
    "GPT2": dict(d=768, layers=12, heads=12, t=128, b=2, vocab=50257),
}
SETTINGS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("methods.json").read_text("utf-8"))
METHODS = tuple(SETTINGS)  # the first is measured where none is named
TASKS = ("step", "forward", "generate")
STEPS = {"S": 20, "M": 4, "L": 1, "XL": 1, "GPT2": 1}  # of a turn
PROMPT, NEW = 16, 64  # tokens of a generation, of one row


def settings(size: str) -> dict[str, int]:
    """The numbers of a size, some replaced: "M,t=512,b=1,r=4". Raises `Bad` for one that is unknown."""
    name, *changes = size.split(",")
    if name not in SIZES:
        raise Bad(f"{name!r}: expected one of {', '.join(SIZES)}{near(name, SIZES)}")
    return SIZES[name] | {"r": 8} | {k: int(v) for k, _, v in (c.partition("=") for c in changes)}


def filled(given: dict[str, Any], size: str) -> dict[str, Any]:
    """Settings of `methods.json` with the numbers of a size in place."""
    return {k: settings(size)[v[1:-1]] if str(v).startswith("{") else v for k, v in given.items()}


def fits(method: str, size: str) -> bool:
    """Whether a method is measured at a size."""
    name = size.partition(",")[0]
    also = {s for every in SETTINGS.values() for s in every.get("also", ())}
    return name not in also or name in SETTINGS[method].get("also", ())


def flops(size: str, task: str = "step") -> float:
    """Multiplications and additions that a step cannot do without: forward and input gradients of all frozen products."""
    s = settings(size)
    d, tokens = s["d"], s["b"] * s["t"]
    wide = 2 if size.startswith("GPT2") else 3  # matrices of the feed-forward, each d × 4 d
    layer = 4 * d * d + wide * d * 4 * d + 2 * s["t"] * d  # projections, feed-forward, attention's two products
    return 2 * (2 if task == "step" else 1) * tokens * (s["layers"] * layer + d * s["vocab"])
