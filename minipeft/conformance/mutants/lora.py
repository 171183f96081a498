"""Errors of LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.conformance import places
from minipeft.conformance.cases import Case, bfloat16
from minipeft.conformance.mutants import Arrays, Settings, Tensors, has, mutant, scale_of
from minipeft.conformance.own import Own, method_of
from minipeft.engine.tensor import value


@mutant("forward grad delta", "vLLM #6909, #10798; TensorRT-LLM #1668; PEFT #2733", has("rslora"))
class rslora_ignored(Settings):
    """The scale is α/r where α/√r is asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(rslora=False)


@mutant("forward grad delta", "sglang #40835", has("rslora"))
class rslora_always(Settings):
    """The scale is α/√r always."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(rslora=True)


@mutant("forward merge", "PEFT #2486", has("lora_bias"))
class lora_bias_ignored(Tensors):
    """The trained bias of B is left out."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | ({"c": arrays["c"] * 0.0} if "c" in arrays else {})


@mutant("forward merge", "PEFT #2489", has("lora_bias"))
class lora_bias_unscaled(Tensors):
    """The trained bias of B is added without the scale."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        scale = getattr(method_of(case), "scale", 1.0)
        return inputs, arrays | ({"c": arrays["c"] * (1 / scale)} if "c" in arrays else {})


class Combined(Own):
    """A mutant that sums adapters wrongly."""

    def change(self, case: Case, y: Any, base: Any, method: Any, arrays: Arrays) -> Any:
        """One adapter's outputs."""
        return y

    def combine(self, case: Case) -> Arrays:
        inputs = case.named("input", "base")
        base = y = inputs["x"] @ inputs["W"].T + inputs["b"]
        for i, weight in enumerate(case.options["weights"]):
            method, arrays = self.adapter(case, i)
            one = value(places.place_at(case.place, case.inputs).call(method, inputs, arrays)["y"])
            y = y + weight * (self.change(case, one, base, method, arrays) - base)
        return dict(y=y)

    def factor(self, case: Case) -> float:
        """√r of the sum under rank-stabilised scaling, whose rank is that of all its members."""
        first = case.options["adapters"][0]
        return sum(c["r"] for c in case.options["adapters"]) ** 0.5 if first["rslora"] else 1.0


@mutant("combine", "PEFT 0.21.2 add_weighted_adapter; PEFT #3761", has("rslora"))
class combine_under_rslora(Combined):
    """The sum keeps α = r under rank-stabilised scaling: it is multiplied by √r once more."""

    def change(self, case: Case, y: Any, base: Any, method: Any, arrays: Arrays) -> Any:
        return base + self.factor(case) * (y - base)


@mutant("combine", "PEFT 0.21.2 add_weighted_adapter")
class combine_forgets_bias(Combined):
    """The sum has no trained bias."""

    def change(self, case: Case, y: Any, base: Any, method: Any, arrays: Arrays) -> Any:
        return y - (method.scale * arrays["c"] if "c" in arrays else 0.0)


class Rounded(Own):
    """A mutant that merges LoRA into bfloat16 with more than one rounding: `change` is what it adds to W, in exact numbers."""

    def change(self, case: Case, s: float, A: Any, B: Any) -> Any:
        return s * (B @ A)

    def parts(self, case: Case) -> tuple[Any, Any, Any]:
        """W, b and the change, in float64."""
        t = {k: v.astype(np.float64) for k, v in case.tensors.items()}
        return t["W"], t["b"], self.change(case, scale_of(case), t["A"], t["B"])

    def merge_bfloat16(self, case: Case) -> Arrays:
        W, b, change = self.parts(case)
        return {k: v.astype(case.dtype) for k, v in dict(W=bfloat16(W + change), b=b).items()}


@mutant("merge_bfloat16", "PEFT 0.21.2; mlx-lm 0.32.2 LoRALinear.fuse; PEFT #1388, #3364")
class merge_rounds_the_change(Rounded):
    """The change is rounded to bfloat16 before it is added."""

    def change(self, case: Case, s: float, A: Any, B: Any) -> Any:
        return bfloat16(s * (B @ A))


@mutant("merge_bfloat16", "loralib 0.1.2, litgpt 0.5.13, LyCORIS 4.1.3")
class merge_rounds_every_step(Rounded):
    """The factors, B A, the scaled change and the sum are each rounded to bfloat16."""

    def change(self, case: Case, s: float, A: Any, B: Any) -> Any:
        return bfloat16(s * bfloat16(bfloat16(B) @ bfloat16(A)))


@mutant("merge_bfloat16", "mlx-lm 0.32.2 LoRALinear.fuse")
class merge_rounds_the_scaled_factor(Rounded):
    """s B, the change and the sum are each rounded to bfloat16."""

    def change(self, case: Case, s: float, A: Any, B: Any) -> Any:
        return bfloat16(bfloat16(s * B) @ A)


@mutant("unmerge_bfloat16", "loralib 0.1.2")
class unmerge_subtracts_exactly(Rounded):
    """Taking an adapter out subtracts from the rounded weight what was added."""

    merge_bfloat16 = Own.merge_bfloat16

    def change(self, case: Case, s: float, A: Any, B: Any) -> Any:
        exact = s * (B @ A)
        return exact if case.options["adapter"] == "float32" else bfloat16(s * bfloat16(B @ A))

    def unmerge_bfloat16(self, case: Case) -> Arrays:
        W, b, change = self.parts(case)
        return {k: v.astype(case.dtype) for k, v in dict(W=bfloat16(bfloat16(W + change) - change), b=b).items()}


@mutant("unmerge_bfloat16", "PEFT 0.21.2")
class unmerge_subtracts_rounded(Rounded):
    """Taking an adapter out subtracts the rounded change from the rounded weight."""

    merge_bfloat16 = Own.merge_bfloat16

    def unmerge_bfloat16(self, case: Case) -> Arrays:
        W, b, change = self.parts(case)
        merged = bfloat16(W + (change if case.options["adapter"] == "float32" else bfloat16(change)))
        return {k: v.astype(case.dtype) for k, v in dict(W=bfloat16(merged - bfloat16(change)), b=b).items()}
