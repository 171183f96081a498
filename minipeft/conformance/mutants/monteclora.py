"""Of MonteCLoRA."""

from __future__ import annotations

from minipeft.conformance.record.variants import More

CASES = {"entropy": More(dict(entropy=True, kl=0.1), steps=3)}

SURVIVES = {
    "it is used where A is sampled, in training": ("p and w exchanged",),
    "numbers are drawn anew in every training pass: nothing can be recorded": (
        "forward, never run",
        "_noise, never run",
    ),
}
