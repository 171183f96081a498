"""Errors of P-tuning."""

from minipeft.conformance.mutants.prompt_tuning import prompt_at_the_end

__all__ = ["prompt_at_the_end"]

from minipeft.conformance.record.variants import More

CASES = {"mlp": More(dict(encoder="mlp"))}

SURVIVES = {
    "the two biases are added": ("bh0 and bx0 exchanged", "bh1 and bx1 exchanged"),
    "in the later steps of generation with a cache, which no case has": ("apply: h (2), never run",),
    "the rate is 0 in evaluation, where the place is": ("prompt: self.dropout",),
    "it is 0": ("_lstm: xp.zeros((1, h), x.dtype)",),
}
