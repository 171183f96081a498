"""Errors of CPT."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Tensors, mutant
from minipeft.conformance.own import method_of
from minipeft.engine import ops


@mutant("forward grad", "PEFT's adapter after inference_mode was set on it")
class context_as_it_began(Tensors):
    """What was trained is left out: E in place of P."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"P": arrays["E"] + 0 * arrays["P"]}


@mutant("forward")
class context_twice(Outputs):
    """P is added to E, as if it held the change alone."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        p = len(method_of(case).tokens)  # type: ignore[attr-defined]
        return dict(y=ops.concatenate(out["y"][:, :p] + arrays["E"], out["y"][:, p:], axis=1))


SURVIVES = {
    "where the text begins, its first token has k = 0": ("counted: 1.0*",),
}
