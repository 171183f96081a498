"""Errors of Uni-LoRA."""

from __future__ import annotations

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Tensors, mutant


@mutant("forward grad")
class unilora_bare(Tensors):
    """Elements are not divided by the root of how many share their place."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {k: arrays[k] * 0 + 1 for k in ("s_A", "s_B")}


@mutant("forward grad")
class unilora_b_first(Tensors):
    """B's places come before A's."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        changed = dict(arrays)
        for name in "Is":
            A, B = arrays[f"{name}_A"], arrays[f"{name}_B"]
            every = [*A.ravel(), *B.ravel()]
            changed[f"{name}_B"] = type(B)(B.shape, B.dtype)
            changed[f"{name}_B"].flat[:] = every[: B.size]
            changed[f"{name}_A"] = type(A)(A.shape, A.dtype)
            changed[f"{name}_A"].flat[:] = every[B.size :]
        return inputs, changed
