"""Errors of Lily."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant
from minipeft.engine import ops


@mutant("forward grad")
class experts_interleaved(Tensors):
    """The rows of B are taken in turn for the experts, in place of one expert after the other."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        E, r = arrays["R"].shape
        B = ops.swapaxes(ops.reshape(arrays["B"], shape=(r, E, -1)), a=0, b=1)
        return inputs, arrays | {"B": ops.reshape(B, shape=(E * r, -1))}


@mutant("forward grad")
class each_text_its_mixture(Tensors):
    """The experts' shares are averaged over the tokens of each text, not over the batch."""

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        x = inputs["x"]
        rows = [
            super(each_text_its_mixture, self).outputs(
                case, {**inputs, "x": ops.getitem(x, index=slice(i, i + 1))}, arrays
            )
            for i in range(len(x))
        ]
        return {k: ops.concatenate(*(row[k] for row in rows), axis=0) for k in rows[0]}
