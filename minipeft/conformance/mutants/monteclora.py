"""Of MonteCLoRA."""

from __future__ import annotations

SURVIVES = {
    "it is used where A is sampled, in training": ("p and w exchanged",),
    "numbers are drawn anew in every training pass: nothing can be recorded": (
        "forward, never run",
        "_noise, never run",
    ),
}
