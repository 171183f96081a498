"""Broken implementations, one for each way in which real ones were wrong: minipeft with one error planted.

The recorded cases must fail every one of them, at the check meant for it: `kill_matrix`. A failure of somebody else's program
is compared with all of them, and with minipeft under other options: `equals` says which output it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.conformance import places
from minipeft.conformance.cases import Case, Rejected, Unsupported, bfloat16
from minipeft.conformance.judge import UNIT, judge
from minipeft.conformance.own import Own, method_of
from minipeft.conformance.results import Result
from minipeft.engine import ops
from minipeft.engine.tensor import value
from minipeft.errors import Bad
from minipeft.method import Method

Arrays = dict[str, Any]
SCALED = ("lora", "lora_plus", "eva", "dora", "pissa", "lora_ga", "qlora", "loha", "adalora")
LORA = ("lora", "lora_plus", "eva", "dora", "qlora")
BOTTLENECKS = ("houlsby", "pfeiffer", "parallel_adapter")


@dataclass(frozen=True)
class Mutant:
    """A planted error: its name, what it does, the methods it concerns, the checks meant to see it, real incidents of it."""

    name: str
    about: str
    methods: tuple[str, ...]
    checks: tuple[str, ...]
    incidents: str
    make: type[Own]


MUTANTS: dict[str, Mutant] = {}


def mutant(methods: Sequence[str], checks: str = "forward", incidents: str = "") -> Callable[[type[Own]], type[Own]]:
    """Enter a broken implementation."""

    def enter(cls: type[Own]) -> type[Own]:
        about = " ".join((cls.__doc__ or "").split()).rstrip(".")
        MUTANTS[cls.__name__] = Mutant(cls.__name__, about, tuple(methods), tuple(checks.split()), incidents, cls)
        return cls

    return enter


class Settings(Own):
    """A mutant that reads its configuration wrongly."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return {}

    def method(self, case: Case) -> Method:
        m = method_of(case)
        changed = self.change(m)
        return dataclasses.replace(m, **changed) if changed else m


class Tensors(Own):
    """A mutant that takes its arrays or inputs wrongly."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        return super().outputs(case, *self.change(case, dict(inputs), dict(arrays)))

    def merge(self, case: Case) -> Arrays:
        own, base = case.named("array", "stored"), case.named("base")
        base, own = self.change(case, base, own)
        changed = {k: value(v) for k, v in (base | own).items() if k in case.inputs}
        return super().merge(dataclasses.replace(case, inputs={**case.inputs, **changed}))


class Outputs(Own):
    """A mutant that computes something else from the right outputs."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return out

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        return self.change(case, super().outputs(case, inputs, arrays), inputs, arrays)


# --- scales -----------------------------------------------------------------------------------------------------------


@mutant(SCALED, "forward grad delta", "mlx-vlm #841, #845; rasbt/LLMs-from-scratch #821")
class alpha_undivided(Settings):
    """The scale is α, not α/r."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(alpha=m.alpha * (m.r**0.5 if getattr(m, "rslora", False) else m.r))


@mutant(SCALED, "forward grad delta", "adapter-hub/adapters #760, #770; Keras lora_alpha in the constructor")
class alpha_ignored(Settings):
    """The scale is 1: α is taken to be r."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(alpha=float(m.r) ** (0.5 if getattr(m, "rslora", False) else 1.0))


@mutant(
    ("lora", "lora_plus", "dora", "eva", "pissa", "lora_ga", "qlora"),
    "forward grad delta",
    "vLLM #6909, #10798; TensorRT-LLM #1668; PEFT #2733",
)
class rslora_ignored(Settings):
    """The scale is α/r where α/√r is asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(rslora=False)


@mutant(("lora", "lora_plus", "dora", "eva", "pissa", "lora_ga", "qlora"), "forward grad delta", "sglang #40835")
class rslora_always(Settings):
    """The scale is α/√r always."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(rslora=True)


@mutant(("adalora",), "forward", "")
class adalora_eps_ignored(Settings):
    """The scale is α/r, not α/(r + ε)."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(eps=0.0)


@mutant(("fourierft",), "forward", "")
class fourier_not_normalised(Settings):
    """The inverse transform is not divided by the number of elements."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(scaling=m.scaling * places.IN * places.OUT)


@mutant(("parallel_adapter",), "forward", "")
class parallel_unscaled(Settings):
    """The parallel branch is added without its scale."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(s=1.0)


@mutant(("shira",), "forward", "")
class shira_unscaled(Settings):
    """The sparse values are added without their scale."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(scale=1.0)


@mutant(("oft",), "forward", "")
class cayley_exact(Settings):
    """The inverse is computed exactly where a series is asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(cayley="exact")


@mutant(("oft",), "forward", "")
class cayley_series(Settings):
    """The inverse is a series of five terms where the exact one is asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(cayley="neumann")


@mutant(("ladder_side",), "forward", "")
class ladder_unheated(Settings):
    """The gate's temperature is left out."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(T=1.0)


@mutant((*BOTTLENECKS, "invertible"), "forward", "")
class activation_swapped(Settings):
    """GELU in place of the activation asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(f="gelu")


# --- biases and magnitudes --------------------------------------------------------------------------------------------

BIASED = (*SCALED, "ia3", "vera", "fourierft", "oft", "osf", "shira", "poly", "x_lora", "full")


@mutant(BIASED, "forward", "")
class bias_dropped(Tensors):
    """The base's bias is left out."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs | ({"b": inputs["b"] * 0.0} if "b" in inputs else {}), arrays


@mutant(LORA, "forward merge", "PEFT #2486")
class lora_bias_ignored(Tensors):
    """The trained bias of B is left out."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | ({"c": arrays["c"] * 0.0} if "c" in arrays else {})


@mutant(LORA, "forward merge", "PEFT #2489")
class lora_bias_unscaled(Tensors):
    """The trained bias of B is added without the scale."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        scale = getattr(method_of(case), "scale", 1.0)
        return inputs, arrays | ({"c": arrays["c"] * (1 / scale)} if "c" in arrays else {})


@mutant(("dora",), "forward", "torchtune 0.6.1 DoRALinear(use_bias=True)")
class dora_scales_bias(Outputs):
    """DoRA's row scale acts on the bias too."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        row = arrays["m"] * (1 / _norms(case, inputs, arrays))
        return dict(y=out["y"] + (row - 1.0) * inputs["b"])


def _norms(case: Case, inputs: Arrays, arrays: Arrays) -> Any:
    V = inputs["W"] + self_scale(case) * (arrays["B"] @ arrays["A"])
    return np.sqrt((value(V) ** 2).sum(axis=1))


def self_scale(case: Case) -> float:
    return float(method_of(case).scale)  # type: ignore[attr-defined]


@mutant(("dora",), "forward", "torchtune #2250")
class dora_is_lora(Tensors):
    """The magnitude is the norm: DoRA computes LoRA."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"m": _norms(case, inputs, arrays)}


@mutant(("dora",), "forward", "mlx-examples #832")
class dora_norm_of_base(Tensors):
    """The norm is that of W, not of W + s B A."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        W = np.sqrt((value(inputs["W"]) ** 2).sum(axis=1))
        return inputs, arrays | {"m": arrays["m"] * (_norms(case, inputs, arrays) / W)}


@mutant(("dora",), "grad", "LyCORIS 4.1.3")
class dora_norm_differentiated(Settings):
    """The gradient runs through the norm."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(grad="full")


@mutant(("dora",), "grad", "")
class dora_norm_detached(Settings):
    """The norm is held constant where the full gradient is asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(grad="detached")


@mutant(("ia3",), "forward grad", "")
class ia3_bias_unscaled(Outputs):
    """(IA)³ scales the product, but not the bias."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] + (1.0 - arrays["l"]) * inputs["b"])


@mutant(("vera",), "forward grad", "")
class vera_one_vector(Tensors):
    """VeRA's second vector is left out."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"lambda_b": arrays["lambda_b"] * 0.0 + 1.0}


# --- wrong products and places ----------------------------------------------------------------------------------------


@mutant(("pissa", "lora_ga"), "forward delta", "transformers #34468; PEFT #2270")
class residual_forgotten(Tensors):
    """The starting factors are not subtracted from the base."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"A0": arrays["A0"] * 0.0}


@mutant(("oft",), "forward grad", "")
class oft_transposed(Tensors):
    """The rotation is transposed: R in place of its inverse."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"Q": arrays["Q"] * -1.0}


@mutant(("loha",), "forward grad", "")
class loha_added(Outputs):
    """The two products are added, not multiplied."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        one, two = (arrays[f"X{i}"] @ arrays[f"Y{i}"] for i in "12")
        return dict(y=ops.linear(inputs["x"], inputs["W"] + 3.0 * (one + two), inputs["b"]))


@mutant(("shira", "trainable_tokens"), "forward", "")
class added_or_replaced(Outputs):
    """What is to be added replaces, and what is to replace is added."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        if case.method == "trainable_tokens":
            return dict(y=out["y"] + ops.take(inputs["W"], ids=inputs["ids"]) * 0.5)
        W = np.array(value(inputs["W"]))
        here = (value(arrays["rows"]), value(arrays["cols"]))
        gone = np.zeros_like(W)
        gone[here] = W[here]
        return dict(y=out["y"] - ops.linear(inputs["x"], gone))


@mutant(("prefix_tuning",), "forward grad", "")
class keys_and_values_swapped(Outputs):
    """The prefix's keys are taken as values and the other way round."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        p = method_of(case).p  # type: ignore[attr-defined]
        k, v = out["k"], out["v"]
        return dict(
            k=ops.concatenate(v[:, :, :p], k[:, :, p:], axis=2), v=ops.concatenate(k[:, :, :p], v[:, :, p:], axis=2)
        )


@mutant(("prompt_tuning", "p_tuning"), "forward grad", "")
class prompt_at_the_end(Outputs):
    """The prompt stands after the text."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        p = method_of(case).p  # type: ignore[attr-defined]
        return dict(y=ops.concatenate(out["y"][:, p:], out["y"][:, :p], axis=1))


@mutant(BOTTLENECKS, "forward grad", "")
class residual_dropped(Outputs):
    """The output of the sub-layer is not added to that of the bottleneck."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] - inputs["a"])


@mutant(("pfeiffer", "adapter_fusion"), "forward grad", "")
class residual_not_read(Tensors):
    """The adapter reads the sub-layer's output, not the residual sum."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs | {"x": inputs["x"] * 0.0}, arrays


@mutant(("parallel_adapter",), "forward grad", "")
class wrong_input_read(Settings):
    """The parallel adapter reads the other one of residual stream and sub-layer input."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(reads="residual" if m.reads == "input" else "input")


@mutant(("loreft",), "forward grad", "")
class rotation_not_subtracted(Outputs):
    """LoReFT adds Rᵀ(W h + b) and does not subtract what R sees of h."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        h, R = inputs["h"], arrays["R"]
        where = np.zeros((1, places.T, 1))
        where[:, : method_of(case).n_pre] = 1.0  # type: ignore[attr-defined]
        return dict(y=out["y"] + ops.linear(h, R) @ R * where)


@mutant(("llama_adapter",), "forward grad", "")
class gate_ignored(Tensors):
    """The gate is 1."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"g": arrays["g"] * 0.0 + 1.0}


@mutant(("adapter_fusion",), "forward grad", "")
class fusion_without_values(Tensors):
    """The values of the fusion are not transformed."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {"Vf": arrays["Vf"] * 0.0 + np.eye(arrays["Vf"].shape[0])}


@mutant(("x_lora",), "forward", "")
class gates_alike(Tensors):
    """All experts have one weight."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs, arrays | {k: arrays[k] * 0.0 for k in arrays if k[0] in "Vv"}


@mutant(("poly",), "forward", "PEFT's router in training mode")
class one_task_for_all(Tensors):
    """Every row is routed as the first one's task."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        ids = value(inputs["task_ids"])
        return inputs | {"task_ids": np.full_like(ids, ids[0])}, arrays


@mutant(("invertible",), "forward grad", "adapter-hub heads without the inverse")
class never_turned_back(Outputs):
    """The coupling is not undone before the head."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return out | {"z": inputs["u"] * 1.0}


@mutant(("qlora",), "forward", "")
class base_not_quantised(Own):
    """The base is used as it was before it was quantised."""

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        own = {k: v for k, v in arrays.items() if k != "c"}
        y = ops.add_lowrank(
            ops.linear(inputs["x"], inputs["W"], inputs["b"]), inputs["x"], own["A"], own["B"], s=self_scale(case)
        )
        return dict(y=y if "c" not in arrays else y + self_scale(case) * arrays["c"])


@mutant(("bitfit",), "forward", "")
class bias_replaced(Outputs):
    """The change takes the place of the bias."""

    def change(self, case: Case, out: Arrays, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=out["y"] - inputs["b"])


@mutant(("osf",), "grad", "")
class gradient_not_projected(Own):
    """The gradients are not kept out of the frozen subspace."""

    def vjp(self, case: Case) -> Arrays:
        free = {k: np.zeros_like(case.inputs[k]) for k in ("Uh", "Vh")}
        return super().vjp(dataclasses.replace(case, inputs={**case.inputs, **free}))


@mutant(("full", "lora", "dora"), "forward", "adapters that load and never act")
class adapter_never_applied(Own):
    """The base's output, whatever the adapter says."""

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        return dict(y=ops.linear(inputs["x"], inputs["W"], inputs["b"]) + 0.0 * ops.sum(next(iter(arrays.values()))))


# --- gradients, merging, training, files ------------------------------------------------------------------------------

EVERYWHERE = ("lora", "dora", "ia3", "loha", "houlsby", "prefix_tuning")


@mutant(EVERYWHERE, "grad", "unsloth-zoo #606, #607")
class one_gradient_missing(Own):
    """One trained array gets a gradient of zero."""

    def vjp(self, case: Case) -> Arrays:
        grads = super().vjp(case)
        first = sorted(set(grads) & set(case.trained))[0]
        return grads | {first: grads[first] * 0.0}


@mutant(("lora", "dora", "ia3", "loha", "vera"), "grad", "")
class input_gradient_of_the_base(Own):
    """The gradient by x is that of the base alone."""

    def vjp(self, case: Case) -> Arrays:
        grads = super().vjp(case)
        return grads | {"x": case.tensors["g.y"] @ case.tensors["W"]}


@mutant(("lora", "dora", "loha", "vera", "ia3", "oft"), "merge delta", "microsoft/LoRA #61, #103; candle-lora #26")
class merged_twice(Own):
    """The change is merged twice."""

    def merge(self, case: Case) -> Arrays:
        merged = super().merge(case)
        return merged | {"W": 2 * merged["W"] - case.tensors["W"]}


@mutant(("lora", "loha", "adalora"), "merge delta", "LyCORIS 4.1.3 LohaModule.merge_to")
class merge_scales_twice(Own):
    """Merging multiplies by the scale once more."""

    def merge(self, case: Case) -> Arrays:
        merged, W = super().merge(case), case.tensors["W"]
        m = method_of(case)
        scale = self_scale(case) if hasattr(m, "scale") else m.alpha / m.r  # type: ignore[attr-defined]
        return merged | {"W": W + scale * (merged["W"] - W)}


@mutant(("ia3",), "unmerge", "PEFT 0.21.2 IA3Layer.unmerge")
class unmerge_guarded(Own):
    """Unmerging divides by the vector plus a small constant."""

    def unmerge(self, case: Case) -> Arrays:
        l = case.tensors["l"]
        merged = self.merge(case)
        return dict(W=merged["W"] / (l[:, None] + 1e-8), b=merged["b"] / (l + 1e-8))


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
            one = value(places.PLACES[case.place].call(method, inputs, arrays)["y"])
            y = y + weight * (self.change(case, one, base, method, arrays) - base)
        return dict(y=y)

    def factor(self, case: Case) -> float:
        """√r of the sum under rank-stabilised scaling, whose rank is that of all its members."""
        first = case.options["adapters"][0]
        return sum(c["r"] for c in case.options["adapters"]) ** 0.5 if first["rslora"] else 1.0


@mutant(("lora", "dora"), "combine", "PEFT 0.21.2 add_weighted_adapter; PEFT #3761")
class combine_under_rslora(Combined):
    """The sum keeps α = r under rank-stabilised scaling: it is multiplied by √r once more."""

    def change(self, case: Case, y: Any, base: Any, method: Any, arrays: Arrays) -> Any:
        return base + self.factor(case) * (y - base)


@mutant(("lora",), "combine", "PEFT 0.21.2 add_weighted_adapter")
class combine_forgets_bias(Combined):
    """The sum has no trained bias."""

    def change(self, case: Case, y: Any, base: Any, method: Any, arrays: Arrays) -> Any:
        return y - (method.scale * arrays["c"] if "c" in arrays else 0.0)


@mutant(("dora",), "combine", "PEFT 0.21.2 add_weighted_adapter")
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


def _lowrank(case: Case) -> tuple[Any, Arrays]:
    """The method and the tensors of a case in bfloat16, in float64."""
    return method_of(case), {k: v.astype(np.float64) for k, v in case.tensors.items()}


class Rounded(Own):
    """A mutant that merges LoRA into bfloat16 with more than one rounding: `change` is what it adds to W, in exact numbers."""

    def change(self, case: Case, s: float, A: Any, B: Any) -> Any:
        return s * (B @ A)

    def parts(self, case: Case) -> tuple[Any, Any, Any]:
        """W, b and the change, in float64."""
        t = {k: v.astype(np.float64) for k, v in case.tensors.items()}
        return t["W"], t["b"], self.change(case, self_scale(case), t["A"], t["B"])

    def merge_bfloat16(self, case: Case) -> Arrays:
        W, b, change = self.parts(case)
        return {k: v.astype(case.dtype) for k, v in dict(W=bfloat16(W + change), b=b).items()}


@mutant(("lora",), "merge_bfloat16", "PEFT 0.21.2; mlx-lm 0.32.2 LoRALinear.fuse; PEFT #1388, #3364")
class merge_rounds_the_change(Rounded):
    """The change is rounded to bfloat16 before it is added."""

    def change(self, case: Case, s: float, A: Any, B: Any) -> Any:
        return bfloat16(s * (B @ A))


@mutant(("lora",), "merge_bfloat16", "loralib 0.1.2, litgpt 0.5.13, LyCORIS 4.1.3")
class merge_rounds_every_step(Rounded):
    """The factors, B A, the scaled change and the sum are each rounded to bfloat16."""

    def change(self, case: Case, s: float, A: Any, B: Any) -> Any:
        return bfloat16(s * bfloat16(bfloat16(B) @ bfloat16(A)))


@mutant(("lora",), "merge_bfloat16", "mlx-lm 0.32.2 LoRALinear.fuse")
class merge_rounds_the_scaled_factor(Rounded):
    """s B, the change and the sum are each rounded to bfloat16."""

    def change(self, case: Case, s: float, A: Any, B: Any) -> Any:
        return bfloat16(bfloat16(s * B) @ A)


@mutant(("lora",), "unmerge_bfloat16", "loralib 0.1.2")
class unmerge_subtracts_exactly(Rounded):
    """Taking an adapter out subtracts from the rounded weight what was added."""

    merge_bfloat16 = Own.merge_bfloat16

    def change(self, case: Case, s: float, A: Any, B: Any) -> Any:
        exact = s * (B @ A)
        return exact if case.options["adapter"] == "float32" else bfloat16(s * bfloat16(B @ A))

    def unmerge_bfloat16(self, case: Case) -> Arrays:
        W, b, change = self.parts(case)
        return {k: v.astype(case.dtype) for k, v in dict(W=bfloat16(bfloat16(W + change) - change), b=b).items()}


@mutant(("lora",), "unmerge_bfloat16", "PEFT 0.21.2")
class unmerge_subtracts_rounded(Rounded):
    """Taking an adapter out subtracts the rounded change from the rounded weight."""

    merge_bfloat16 = Own.merge_bfloat16

    def unmerge_bfloat16(self, case: Case) -> Arrays:
        W, b, change = self.parts(case)
        merged = bfloat16(W + (change if case.options["adapter"] == "float32" else bfloat16(change)))
        return {k: v.astype(case.dtype) for k, v in dict(W=bfloat16(merged - bfloat16(change)), b=b).items()}


@mutant(("ia3",), "merge", "")
class merge_forgets_bias(Own):
    """Merging leaves the bias as it was."""

    def merge(self, case: Case) -> Arrays:
        return super().merge(case) | {"b": case.tensors["b"]}


@mutant(("ia3", "lora", "dora", "oft"), "unmerge", "PEFT #3149, #3216, #3531")
class unmerge_multiplies(Own):
    """Taking a merged adapter out puts it in once more."""

    def unmerge(self, case: Case) -> Arrays:
        merged = self.merge(case)
        return {k: 2 * merged[k] - case.tensors[k] for k in merged} | {"b": merged["b"]}


@mutant(("lora", "dora", "ia3"), "train", "")
class base_trained(Own):
    """Weight decay reaches the frozen weight."""

    def train(self, case: Case) -> Arrays:
        return super().train(case) | {"W": case.tensors["W"] * (1 - 1e-3)}


@mutant(("lora", "dora", "ia3", "loha", "houlsby"), "train", "")
class decay_is_coupled(Own):
    """Weight decay is added to the gradient."""

    def train(self, case: Case) -> Arrays:
        settings = dict(case.options["optimiser"], weight_decay=0.0)
        now, decay = case, case.options["optimiser"]["weight_decay"]
        del now
        theta = super().train(dataclasses.replace(case, options={"optimiser": settings}))
        return {k: v * (1 - decay * settings["lr"]) if k in case.trained else v for k, v in theta.items()}


@mutant(("lora", "dora", "ia3", "houlsby"), "train", "")
class one_step_too_few(Own):
    """The last step is not taken."""

    def train(self, case: Case) -> Arrays:
        o = case.options["optimiser"]
        return super().train(dataclasses.replace(case, options={"optimiser": {**o, "steps": o["steps"] - 1}}))


@mutant(("lora", "dora", "ia3", "loha", "vera"), "load", "vLLM #55193; transformers #46766; PEFT #1932, #2084, #2772")
class any_file_is_taken(Own):
    """A file that lacks keys, or is of another model, gives the base's output."""

    def load(self, case: Case) -> Arrays:
        try:
            return super().load(case)
        except Exception:
            t = case.tensors
            return dict(y=t["x"] @ t["W"].T + t["b"])


@mutant(("lora", "dora", "loha"), "dropout", "torchtune #996; aprender #2170")
class dropout_ignored(Tensors):
    """Dropout is never applied."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return {k: v for k, v in inputs.items() if k != "keep"}, arrays


@mutant(("lora", "dora", "vera"), "dropout", "")
class dropout_unscaled(Tensors):
    """What is kept is not divided by 1 − p."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        p = getattr(method_of(case), "dropout", 0.0)
        return inputs | ({"keep": inputs["keep"] * (1 - p)} if "keep" in inputs else {}), arrays


@mutant(("lora", "vera"), "dropout", "")
class dropout_on_the_base(Tensors):
    """Dropout acts on the input of the base too."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        if "keep" not in inputs:
            return inputs, arrays
        p = method_of(case).dropout  # type: ignore[attr-defined]
        rest = {k: v for k, v in inputs.items() if k != "keep"}
        return rest | {"x": inputs["x"] * inputs["keep"] * (1 / (1 - p))}, arrays


@mutant(("lora", "dora", "loha", "vera", "ia3"), "init", "")
class not_identity(Own):
    """A fresh adapter changes the model."""

    def init(self, case: Case) -> Arrays:
        rng = np.random.default_rng(0)
        return {
            k: v + 0.1 * rng.standard_normal(v.shape) if v.dtype.kind == "f" else v
            for k, v in super().init(case).items()
        }


@mutant(EVERYWHERE, "forward", "float32 inside of float64")
class float32_inside(Own):
    """Computed in float32, given as float64."""

    def forward(self, case: Case) -> Arrays:
        low = super().forward(dataclasses.replace(case, dtype=np.float32))
        return {k: v.astype(case.dtype) for k, v in low.items()}


@mutant(EVERYWHERE, "forward", "")
class dtype_lost(Own):
    """Results come in float32, whatever was asked for."""

    def forward(self, case: Case) -> Arrays:
        return {k: v.astype(np.float32) for k, v in super().forward(case).items()}


# --- killing and diagnosing -------------------------------------------------------------------------------------------


def result_of(implementation: Own, case: Case) -> Any:
    """The judged result of an implementation in this process."""
    result = Result(implementation=type(implementation).__name__, version="", id=case.id, outcome="SKIP")
    try:
        got = getattr(implementation, case.ask)(case)
    except Unsupported as why:
        return dataclasses.replace(result, reason=str(why))
    except Rejected as why:
        right = case.tolerance == "REJECT"
        return dataclasses.replace(result, outcome="PASS" if right else "FAIL", reason=str(why))
    except Exception as why:
        return dataclasses.replace(result, outcome="ERROR", reason=f"{type(why).__name__}: {why}")
    return judge(case, got, result)


def kill_matrix(cases: Sequence[Case]) -> dict[str, dict[str, list[str]]]:
    """{mutant: {check: ids of the cases it fails}}."""
    out: dict[str, dict[str, list[str]]] = {}
    for name, m in MUTANTS.items():
        implementation = m.make()
        out[name] = {}
        for case in cases:
            if case.method in m.methods and result_of(implementation, case).outcome in ("FAIL", "ERROR"):
                out[name].setdefault(case.check, []).append(case.id)
    return out


def alternatives(case: Case) -> Iterator[tuple[str, Own]]:
    """Other implementations that this case's output might be: mutants, and minipeft with one option changed."""
    from minipeft.conformance.record import options

    for name, m in MUTANTS.items():
        if case.method in m.methods:
            yield name, m.make()
    method = method_of(case)
    for field, choices in options(type(method)).items():
        for choice in choices:
            if choice != getattr(method, field):

                class Other(Settings):
                    def change(self, m: Any, field: str = field, choice: Any = choice) -> Mapping[str, Any]:
                        return {field: choice}

                yield f"{field}={choice}", Other()


def equals(case: Case, got: Mapping[str, Any]) -> list[str]:
    """The names of the mutants and options whose results are those of `got`, and not what is wanted."""
    found = []
    rounded = case.tolerance in ("EXACT", "ROUND1")  # then results are equal, or not
    for name, implementation in alternatives(case):
        try:
            other = getattr(implementation, case.ask)(case)
        except Exception:
            continue
        if set(case.want) - set(other):
            continue
        tolerance = {
            k: 0.0 if rounded else 64 * UNIT[np.dtype(case.dtype)] * max(case.cond.get(k, 0.0), float(abs(v).max()))
            for k, v in case.want.items()
        }
        differs = any((abs(np.asarray(other[k], np.float64) - v) > tolerance[k]).any() for k, v in case.want.items())
        same = all(
            np.asarray(got.get(k)).shape == v.shape
            and (abs(np.asarray(got[k], np.float64) - other[k]) <= tolerance[k]).all()
            for k, v in case.want.items()
        )
        if differs and same:
            found.append(name)
    return found or _roughly(case, got)


def _roughly(case: Case, got: Mapping[str, Any]) -> list[str]:
    """Whether the results are as wanted but for the rounding of float32 in float64."""
    fits = all(np.asarray(got.get(k)).shape == v.shape for k, v in case.want.items())
    if np.dtype(case.dtype) != np.float64 or case.tolerance != "COND" or not fits:
        return []

    def within(dtype: Any) -> bool:
        unit = case.k * UNIT[np.dtype(dtype)]
        return all((abs(np.asarray(got[k]) - v) <= unit * case.cond[k]).all() for k, v in case.want.items())

    return ["float32_inside"] if within(np.float32) and not within(np.float64) else []


def survivors(matrix: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """Mutants that no case fails, or that only other checks than the intended fail. Raises `Bad` if one has no methods."""
    said = []
    for name, killed in matrix.items():
        if not MUTANTS[name].methods:
            raise Bad(f"mutant {name} concerns no method")
        if not set(killed) & set(MUTANTS[name].checks):
            said.append(
                f"{name}: meant for {', '.join(MUTANTS[name].checks)}, failed {', '.join(sorted(killed)) or 'nothing'}"
            )
    return said


def markdown(matrix: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """The kill matrix as a page."""
    rows = [
        "# Mutants",
        "",
        "One broken implementation for each way in which real ones were wrong: minipeft with one error planted. The recorded cases",
        "must fail each at the check meant for it. `python -m minipeft.conformance.mutants` writes this page.",
        "",
        "| mutant | what it does | methods | meant for | failed cases by check | seen in |",
        "|---|---|---|---|---|---|",
    ]
    for name, killed in matrix.items():
        m = MUTANTS[name]
        counts = ", ".join(f"{check} {len(ids)}" for check, ids in sorted(killed.items())) or "none"
        rows.append(
            f"| `{name}` | {m.about} | {', '.join(m.methods)} | {', '.join(m.checks)} | {counts} | {m.incidents or '–'} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write docs/mutants.md."""
    from pathlib import Path

    from minipeft.conformance import cases as files

    page = Path(__file__).parents[2] / "docs" / "mutants.md"
    page.write_text(markdown(kill_matrix(list(files.load()))), encoding="utf-8")


if __name__ == "__main__":
    main()
