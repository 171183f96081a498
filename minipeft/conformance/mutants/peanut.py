"""Errors of PEANuT."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Tensors, mutant
from minipeft.conformance.own import method_of
from minipeft.engine import ops
from minipeft.model.activations import ACTIVATIONS


class _Network(Outputs):
    """A network that differs in one thing."""

    def after(self, f: Any, x: Any, beside: Any) -> Any:
        return f(x) + beside

    def beside(self, H: list[Any]) -> Any:
        return H.pop()

    def last(self, f: Any, x: Any) -> Any:
        return x

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        m: Any = method_of(case)
        f, H = ACTIVATIONS[m.f], []
        h = f(arrays["A"] @ inputs["W"])
        for n in range(m.depth):
            H.append(h)
            h = f(arrays[f"E{n}"] @ h)
        for n in range(m.depth):
            h = self.after(f, arrays[f"D{n}"] @ h, self.beside(H))
        W = inputs["W"] + m.scale * self.last(f, arrays["B"] @ h)
        return dict(y=ops.linear(inputs["x"], W, inputs["b"]))


@mutant("forward grad")
class peanut_sum_before_the_function(_Network):
    """On the way back the earlier layer is added before the activation function."""

    def after(self, f: Any, x: Any, beside: Any) -> Any:
        return f(x + beside)


@mutant("forward grad")
class peanut_first_beside_first(_Network):
    """On the way back the earlier layers are added from the first to the last."""

    def beside(self, H: list[Any]) -> Any:
        return H.pop(0)


@mutant("forward grad")
class peanut_function_at_the_end(_Network):
    """The activation function follows B too."""

    def last(self, f: Any, x: Any) -> Any:
        return f(x)


@mutant("forward grad")
class peanut_backwards(Tensors):
    """The inner matrices of the way back are taken in reverse."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        back = sorted(k for k in arrays if k.startswith("D"))
        return inputs, arrays | dict(zip(back, [arrays[k] for k in reversed(back)], strict=True))
