"""Errors of P-tuning."""

from __future__ import annotations

from minipeft.conformance.record.variants import More

CASES = {"mlp": More(dict(encoder="mlp"))}

SURVIVES = {
    "the two biases are added": ("bh0 and bx0 exchanged", "bh1 and bx1 exchanged"),
    "the rate is 0 in evaluation, where the place is": ("prompt: self.dropout",),
    "in later passes over a cache no prompt is made": ("PromptTuning.apply: h, never run",),
    "it is 0": ("_lstm: xp.zeros((1, h), x.dtype)",),
}
