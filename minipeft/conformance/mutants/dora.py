"""Errors of DoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Outputs, Settings, Tensors, Weights, mutant, scale_of
from minipeft.conformance.mutants.lora import Combined
from minipeft.conformance.own import method_of
from minipeft.conformance.record.variants import More
from minipeft.engine import ops
from minipeft.engine.tensor import stop_gradient, value


def _norms(case: Case, inputs: Arrays, arrays: Arrays) -> Any:
    V = inputs["W"] + scale_of(case) * (arrays["B"] @ arrays["A"])
    return np.sqrt((value(V) ** 2).sum(axis=1))


@mutant("forward", "torchtune 0.6.1 DoRALinear(use_bias=True)")
class dora_scales_bias(Outputs):
    """DoRA's row scale acts on the bias too."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        row = arrays["m"] * (1 / _norms(case, inputs, arrays))
        return dict(y=out["y"] + (row - 1.0) * inputs["b"])


@mutant("forward", "torchtune #2250")
class dora_is_lora(Tensors):
    """The magnitude is the norm: DoRA computes LoRA."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"m": _norms(case, inputs, arrays)}


@mutant("forward", "mlx-examples #832")
class dora_norm_of_base(Tensors):
    """The norm is that of W, not of W + s B A."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        W = np.sqrt((value(inputs["W"]) ** 2).sum(axis=1))
        return inputs, arrays | {"m": arrays["m"] * (_norms(case, inputs, arrays) / W)}


class Normed(Weights):
    """A mutant that normalises otherwise: `made` of W, the scaled change, the magnitude, and what holds a norm constant if that is asked."""

    made: Callable[..., Any]

    def change(self, case: Case, W: Any, arrays: Arrays) -> Any:
        product = arrays["B"] @ arrays["A"]
        if "A0" in arrays:
            product = product - arrays["B0"] @ arrays["A0"]
        still = stop_gradient if method_of(case).grad == "detached" else lambda n: n  # type: ignore[attr-defined]
        return self.made(W, scale_of(case) * product, product, arrays["m"], still)


@mutant("forward merge", "InvokeAI #9517; PEFT #2348")
class dora_norm_along_outputs(Normed):
    """The norm is taken along the wrong axis: of columns, not of rows."""

    def made(self, W: Any, change: Any, product: Any, m: Any, still: Any) -> Any:
        V = W + change
        return V / still(ops.norm(V, axis=0)) * m[:, None]


@mutant("forward merge")
class dora_norm_unscaled(Normed):
    """The norm is that of W + B A, without the scale."""

    def made(self, W: Any, change: Any, product: Any, m: Any, still: Any) -> Any:
        return (W + change) * (m / still(ops.norm(W + product, axis=1)))[:, None]


@mutant("forward merge")
class dora_norm_of_the_change(Normed):
    """The norm is that of s B A, not of W + s B A."""

    def made(self, W: Any, change: Any, product: Any, m: Any, still: Any) -> Any:
        return (W + change) * (m / still(ops.norm(change, axis=1)))[:, None]


@mutant("forward merge")
class dora_norm_of_all(Normed):
    """There is one norm of the whole matrix, not one of every row."""

    def made(self, W: Any, change: Any, product: Any, m: Any, still: Any) -> Any:
        V = W + change
        return V / still(ops.norm(V)) * m[:, None]


@mutant("forward merge")
class dora_base_normalised_alone(Normed):
    """W is normalised and scaled by the magnitude, and s B A added after that."""

    def made(self, W: Any, change: Any, product: Any, m: Any, still: Any) -> Any:
        return W * (m / still(ops.norm(W, axis=1)))[:, None] + change


@mutant("forward merge")
class dora_change_normalised_alone(Normed):
    """The magnitude over the norm acts on s B A alone, not on W."""

    def made(self, W: Any, change: Any, product: Any, m: Any, still: Any) -> Any:
        return W + change * (m / still(ops.norm(W + change, axis=1)))[:, None]


@mutant("grad", "LyCORIS 4.1.3")
class dora_norm_differentiated(Settings):
    """The gradient runs through the norm."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(grad="full")


@mutant("grad")
class dora_norm_detached(Settings):
    """The norm is held constant where the full gradient is asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(grad="detached")


@mutant("combine", "PEFT 0.21.2 add_weighted_adapter")
class combine_forgets_magnitude(Combined):
    """The sum has the base's magnitudes, not the adapters'; and α = r under rank-stabilised scaling."""

    def combine(self, case: Case) -> Arrays:
        t = case.tensors
        V = t["W"].copy()
        for i, weight in enumerate(case.options["weights"]):
            method, arrays = self.adapter(case, i)
            V += weight * method.scale * self.factor(case) * (arrays["B"] @ arrays["A"])  # type: ignore[attr-defined]
        row = np.sqrt((t["W"] ** 2).sum(axis=1)) / np.sqrt((V**2).sum(axis=1))
        return dict(y=t["x"] @ (row[:, None] * V).T + t["b"])


CASES = {"residual": More(dict(start="svd"))}

SURVIVES = {
    "every row is divided by its norm": ("weight: self.change(**factors).onto(W), times*",),
    "a norm has no sign": ("weight: V, other sign",),
}
