"""Errors of X-LoRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.conformance.record.variants import More


@mutant()
class gates_alike(Tensors):
    """All experts have one weight."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {k: arrays[k] * 0.0 for k in arrays if k[0] in "Vv"}


CASES = {"best": More(dict(top_k=1)), "deep": More(dict(depth=2))}

SURVIVES = {
    "only the order of the values is asked for, which no positive factor changes": (
        "_pick: g, times*",
        "_pick: value(g), times*",
        "_pick: -value(g), times*",
    ),
    "only whether it is 0 is asked for": ("_pick: g (4)", "_pick: value(g) (3)"),
    "only the shape is asked for": ("_pick: g (2)", "_pick: value(g) (2)"),
    "a number so low that its exponential is 0, whatever it is exactly": ("_pick: *finfo*", "_pick: low"),
    "the only site of a place has the number 0": ("forward: index",),
    "outputs are those of the second pass, which has the gates": (
        "forward: not self.pass_value, never run",
        "forward: y, never run",
        "forward: xp.full*, never run",
    ),
    "no place has a token table and hidden states": ("forward: y + s * (ops.take*, never run",),
    "the rate is 0 in evaluation, where the place is": ("forward: expert.dropout", "before: self.dropout"),
    "it is 0": ("_pick: xp.zeros_like*",),
}
