"""What minipeft computes with a base and one batch, under the names the recordings use, and how exactly it must agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.conformance.laws import K
from minipeft.engine import ops
from minipeft.engine.tensor import value, value_and_grad
from minipeft.model.base import Model
from minipeft.model.batch import batch
from minipeft.model.sensitivity import sensitivities

PLACES = {"embeds": "inputs_embeds", "decoder_embeds": "decoder_inputs_embeds", "pixels": "pixel_values"}


def compute(model: Model, given: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """logits or hidden, loss, and the loss's gradient by what enters: token embeddings, or pixels.

    Without labels the loss is the sum of the output times `given["weights"]`.
    """
    arch = model.arch
    given = {k: v.astype(model.dtype) if v.dtype.kind == "f" else v for k, v in given.items()}
    weights = given.pop("weights", None)
    if arch.patch:
        inputs = {"pixels": given["pixel_values"]}
    else:
        table = model.params["embed.tokens.weight"]
        ids = given.pop("input_ids")  # their vectors take their place
        inputs = {"embeds": table[ids]}
        if arch.first_position:  # RoBERTa's positions leave out the padding, which vectors do not show
            real = ids != arch.pad_id
            given["position_ids"] = np.cumsum(real, axis=1) * real + arch.first_position - 1
        if arch.encoder_layers:
            shifted = np.roll(given["labels"], 1, axis=1)
            shifted[:, 0] = arch.start_id
            inputs["decoder_embeds"] = table[np.where(shifted == -100, arch.pad_id, shifted)]

    def f(theta: dict) -> Any:
        out = Adapted(model).forward(batch(**{**given, **{PLACES[k]: v for k, v in theta.items()}}))
        loss = out.loss if weights is None else ops.sum(out.hidden * weights)
        return loss, out

    (loss, out), grads = value_and_grad(f)(inputs)
    results = {"loss": np.asarray(loss)} | {f"grad::{k}": g for k, g in grads.items()}
    return results | ({"hidden": value(out.hidden)} if out.logits is None else {"logits": value(out.logits)})


def ratios(model: Model, given: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> dict[str, float]:
    """err / (u·cond) of every result, u that of the model's dtype; `held` says whether they are all below K.

    cond of a result is how much it moves for a relative change of 1 in every number of the model (`sensitivity`). Outputs
    are compared at the tokens that the mask shows.
    """
    shown = given.get("attention_mask")

    def seen(a: np.ndarray) -> np.ndarray:
        return a[shown == 1] if shown is not None and a.shape[:2] == shown.shape else a

    got = compute(model, given)
    assert set(got) == set(want)
    cond = sensitivities(lambda m, _: {k: seen(a) for k, a in compute(m, given).items()}, model, {})
    out = {}
    for name, mine in got.items():
        assert mine.dtype == model.dtype, f"{name} is {mine.dtype} in a model in {model.dtype}"
        assert mine.shape == want[name].shape, name
        assert np.isfinite(seen(mine)).all(), name
        u = float(np.finfo(model.dtype).eps) / 2
        out[name] = float(abs(seen(mine).astype(np.float64) - seen(want[name])).max()) / (u * cond[name])
    return out


def held(found: Mapping[str, float]) -> bool:
    """The tolerance rule."""
    return all(r <= K for r in found.values())
