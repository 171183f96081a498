"""Errors of prompt tuning: those of `virtual` are all that its one array allows."""

from __future__ import annotations

SURVIVES = {
    "the token that a classifier reads is no output of a place, and positions are left out by a setting that no case has": (
        "apply: here.tokens, never run",
        "apply: -1, never run",
    ),
}
