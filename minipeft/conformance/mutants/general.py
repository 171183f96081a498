"""Errors of no one method: of scales, biases, gradients, merging, beginnings and files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.arrays import declared
from minipeft.conformance import acting
from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import EVERY, Arrays, Settings, Tensors, Where, has, held, mutant, scale_of
from minipeft.conformance.own import Own, as_asked
from minipeft.conformance.record.one import combined
from minipeft.conformance.record.variants import more
from minipeft.engine import ops
from minipeft.errors import Bad
from minipeft.interop.peft.layer import load_layer
from minipeft.interop.peft.reading import read_config
from minipeft.interop.peft.registry import spec_named
from minipeft.method import ties, weight_of

SCALED = has("alpha", "r")
COMBINED = Where("that libraries also put on tables, and sum", lambda cls: combined(cls.name))
TIED = Where("with cases of a tied table", lambda cls: combined(cls.name) or any(it.tied for it in more(cls).values()))

# --- settings ---------------------------------------------------------------------------------------------------------


@mutant("forward grad delta", "mlx-vlm #841, #845; rasbt/LLMs-from-scratch #821", SCALED)
class alpha_undivided(Settings):
    """The scale is α, not α/r."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(alpha=m.alpha * (m.r**0.5 if getattr(m, "rslora", False) else m.r))


@mutant("forward grad delta", "adapter-hub/adapters #760, #770; Keras lora_alpha in the constructor", SCALED)
class alpha_ignored(Settings):
    """The scale is 1: α is taken to be r."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(alpha=float(m.r) ** (0.5 if getattr(m, "rslora", False) else 1.0))


@mutant("forward", "", has("f"))
class activation_swapped(Settings):
    """GELU in place of the activation asked for."""

    def change(self, m: Any) -> Mapping[str, Any]:
        return dict(f="gelu")


# --- the base ---------------------------------------------------------------------------------------------------------


@mutant("forward", "", EVERY)
class bias_dropped(Tensors):
    """The base's bias is left out."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs | ({"b": inputs["b"] * 0.0} if "b" in inputs else {}), arrays


@mutant("forward", "", EVERY)
class bias_doubled(Tensors):
    """The base's bias is added twice."""

    def change(self, case: Case, inputs: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        return inputs | ({"b": inputs["b"] * 2.0} if "b" in inputs else {}), arrays


@mutant("forward", "adapters that load and never act", EVERY)
class adapter_never_applied(Own):
    """The base's output, whatever the adapter says."""

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        nothing = sum(0.0 * ops.sum(arrays[k]) for k in case.trained if k in arrays)
        if case.place == "linear":
            W = acting.held(self.method(case), inputs["W"])
            return dict(y=ops.linear(inputs["x"], W, inputs["b"]) + nothing)
        if case.place == "table":
            return dict(y=ops.take(inputs["W"], ids=inputs["ids"]) + nothing)
        return super().outputs(case, inputs, arrays)


# --- gradients --------------------------------------------------------------------------------------------------------


@mutant("grad", "unsloth-zoo #606, #607", EVERY)
class one_gradient_missing(Own):
    """One trained array gets a gradient of zero."""

    def vjp(self, case: Case) -> Arrays:
        grads = super().vjp(case)
        first = sorted(set(grads) & set(case.trained))[0]
        return grads | {first: grads[first] * 0.0}


@mutant("grad", "", EVERY)
class input_gradient_of_the_base(Own):
    """The gradient by a linear's input is that of the base alone."""

    def vjp(self, case: Case) -> Arrays:
        grads = super().vjp(case)
        return grads | ({"x": case.tensors["g.y"] @ held(case)} if case.place == "linear" else {})


# --- merging ----------------------------------------------------------------------------------------------------------


@mutant("merge delta", "microsoft/LoRA #61, #103; candle-lora #26", EVERY)
class merged_twice(Own):
    """The change is merged twice."""

    def merge(self, case: Case) -> Arrays:
        merged = super().merge(case)
        return merged | {"W": 2 * merged["W"] - held(case)}


@mutant("merge delta", "LyCORIS 4.1.3 LohaModule.merge_to", SCALED)
class merge_scales_twice(Own):
    """Merging multiplies by the scale once more."""

    def merge(self, case: Case) -> Arrays:
        merged, W = super().merge(case), held(case)
        return merged | {"W": W + scale_of(case) * (merged["W"] - W)}


@mutant("merge", "", EVERY)
class merge_forgets_bias(Own):
    """Merging leaves the bias as it was."""

    def merge(self, case: Case) -> Arrays:
        merged = super().merge(case)
        return merged | ({"b": case.tensors["b"]} if "b" in merged else {})


@mutant("merge delta", "", EVERY)
class merged_turned(Own):
    """The change is merged with its rows read as columns: transposed and reshaped."""

    def merge(self, case: Case) -> Arrays:
        merged, W = super().merge(case), held(case)
        return merged | {"W": W + np.reshape((merged["W"] - W).T, W.shape)}


@mutant("unmerge", "", SCALED)
class unmerge_unscaled(Own):
    """Taking a merged adapter out subtracts the change without its scale."""

    def unmerge(self, case: Case) -> Arrays:
        merged, W = self.merge(case), held(case)
        return case.named("base") | {"W": merged["W"] - (merged["W"] - W) / scale_of(case)}


@mutant("unmerge", "PEFT #3149, #3216, #3531", EVERY)
class unmerge_multiplies(Own):
    """Taking a merged adapter out puts it in once more."""

    def unmerge(self, case: Case) -> Arrays:
        merged = self.merge(case)
        return merged | {"W": 2 * merged["W"] - case.tensors["W"]}


# --- beginnings -------------------------------------------------------------------------------------------------------


@mutant("init", "", EVERY)
class not_identity(Own):
    """A fresh adapter changes the model."""

    def init(self, case: Case) -> Arrays:
        rng = np.random.default_rng(0)
        return {
            k: v + 0.1 * rng.standard_normal(v.shape) if v.dtype.kind == "f" else v
            for k, v in super().init(case).items()
        }


class Drawing(Own):
    """A mutant that begins with other numbers, where they are drawn."""

    asks = frozenset(("draw",))

    def number(self, a: Any, rng: Any) -> Any:
        return a

    def draw(self, case: Case) -> Arrays:
        rng = np.random.default_rng(0)
        drawn = super().draw(case)
        return {k: self.number(a, rng).astype(a.dtype) if (a != a[0]).any() else a for k, a in drawn.items()}


DRAWS = Where(
    "whose arrays are drawn", lambda cls: any(a.trained and "(" in a.start.says for a in declared(cls).arrays.values())
)


@mutant("draw", "", DRAWS)
class begins_wider(Drawing):
    """What is drawn is √3 times as wide: the bound of a uniform distribution is taken for its deviation."""

    def number(self, a: Any, rng: Any) -> Any:
        return a * 3**0.5


@mutant("draw", "", DRAWS)
class begins_from_another_law(Drawing):
    """What is uniform is drawn from a normal distribution as wide, and the other way round."""

    def number(self, a: Any, rng: Any) -> Any:
        wide = np.sqrt((a * a).mean())
        uniform = (a**4).mean() < 2.4 * wide**4
        return wide * (rng.standard_normal(a.shape) if uniform else rng.uniform(-(3**0.5), 3**0.5, a.shape))


@mutant("draw", "", DRAWS)
class begins_above_zero(Drawing):
    """What is drawn has no sign: it is uniform from 0 up."""

    def number(self, a: Any, rng: Any) -> Any:
        return abs(a)


# --- files ------------------------------------------------------------------------------------------------------------


@mutant("load", "vLLM #55193; transformers #46766; PEFT #1932, #2084, #2772", EVERY)
class any_file_is_taken(Own):
    """A file that lacks keys, or is of another model, gives the base's output."""

    def load(self, case: Case) -> Arrays:
        try:
            return super().load(case)
        except Exception:
            t = case.tensors
            return dict(y=t["x"] @ t["W"].T + t["b"])


@mutant("load", "", EVERY)
class patterns_unread(Own):
    """What a file's configuration says of single modules, as alpha_pattern does, is not read."""

    def load(self, case: Case) -> Arrays:
        patterns = [k for k, v in read_config(case.folder / "adapter").items() if k.endswith("_pattern") and v]  # type: ignore[operator]
        for left in (patterns, *([k] for k in patterns)):
            with contextlib.suppress(Bad):  # of rank_pattern the shapes tell
                return self.forward(as_asked(case, *load_layer(case, without=left)))
        return super().load(case)


@mutant("load", "unsloth #3444", COMBINED)
class saved_modules_unread(Own):
    """Modules that a file holds whole, for `modules_to_save` names them, are not read: the base's are used."""

    asks = frozenset(("load",))

    def whole(self, case: Case) -> Arrays:
        return {}


class Saving(Own):
    """A mutant that writes other files."""

    asks = frozenset(("save",))

    def key(self, key: str) -> str:
        return key

    def save(self, case: Case) -> Arrays:
        return {self.key(k): v for k, v in super().save(case).items()}


ON_LAYER = Where(
    "that PEFT has on one linear",
    lambda cls: (spec := spec_named(cls.name)) is not None and spec.on_layer and not spec.unsaved,
)


@mutant("save", "", ON_LAYER)
class saved_without_root(Saving):
    """Keys of saved tensors lack `base_model.model.`"""

    def key(self, key: str) -> str:
        return key.removeprefix("base_model.model.")


@mutant("save", "", ON_LAYER)
class saved_with_the_adapter_s_name(Saving):
    """Keys of saved tensors have the adapter's name in them, `default`."""

    def key(self, key: str) -> str:
        head, dot, end = key.rpartition(".")
        return f"{key}.default" if end != "weight" else f"{head}.default{dot}{end}"


# --- tied tables ------------------------------------------------------------------------------------------------------


@mutant("embedding", "PEFT #2018; transformers #45127", TIED)
class tie_broken(Own):
    """The head keeps the base's table, where it is tied to one that is trained; or has the trained one, where it is not to."""

    asks = frozenset(("forward", "vjp"))

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        out = super().outputs(case, inputs, arrays)
        if case.place != "tied":
            return out
        W, method = inputs["W"], self.method(case)
        return out | dict(z=ops.linear(inputs["h"], W if ties(method) else weight_of(method, W, arrays)))


@mutant("embedding", "PEFT #2864", TIED)
class tie_changed_twice(Own):
    """The change of a tied table reaches the head twice: each of two layers that hold it adds its own."""

    asks = frozenset(("forward", "vjp"))

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        out = super().outputs(case, inputs, arrays)
        if case.place != "tied":
            return out
        W = inputs["W"]
        return out | dict(z=ops.linear(inputs["h"], 2.0 * weight_of(self.method(case), W, arrays) - W))


# --- numbers ----------------------------------------------------------------------------------------------------------


@mutant("forward", "float32 inside of float64", EVERY)
class float32_inside(Own):
    """Computed in float32, given as float64."""

    def forward(self, case: Case) -> Arrays:
        low = super().forward(dataclasses.replace(case, dtype=np.float32))
        return {k: v.astype(case.dtype) for k, v in low.items()}


@mutant("forward", "", EVERY)
class dtype_lost(Own):
    """Results come in float32, whatever was asked for."""

    def forward(self, case: Case) -> Arrays:
        return {k: v.astype(np.float32) for k, v in super().forward(case).items()}
