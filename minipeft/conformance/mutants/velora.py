"""Of VeLoRA."""

from __future__ import annotations

from minipeft.conformance.record.variants import More

CASES = {
    "training": More(dict(dropout=0.3, init="once"), training=True),
    "training_mean": More(dict(dropout=0.3, lora_bias=True), training=True),
}

SURVIVES = {
    "v vᵀ has no sign of v": (
        "forward: v, other sign",
        "forward: v (2), other sign",
        "average: m*, other sign",
        "average: xp.where*, other sign",
        "forward: average*, other sign",
        "average: cut*, other sign",
        "average: x, other sign",
        "forward: value(x), other sign",
        "forward: x (3), other sign",
        "average: n (3), other sign",
    ),
    "only the shape is asked for": ("cut: rows (2)", "cut: rows (3)"),
    "v has the length 1, whatever that of the mean": (
        "forward: x (3)",
        "forward: value(x)",
        "average: x",
        "average: cut*",
    ),
    "only whether it is positive is asked for": ("average: n, times*", "average: n (2), times*"),
    "takes the place of a mean that is 0": ("average: m (4)", "average: *0.5*"),
    "it is 0": ("cut: xp.zeros*",),
}
