"""transformers computing in float64 throughout, and what it then makes of one batch: the witness of the recorders and live tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import modeling_rope_utils
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.t5 import modeling_t5
from transformers.models.vit import modeling_vit

DOWNCASTING = (
    modeling_rope_utils, modeling_gpt2, modeling_llama, modeling_mistral, modeling_qwen2, modeling_t5, modeling_vit,
)  # fmt: skip


class Wide:
    """The torch module, but its float32 is float64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def as_float64(*more: Any) -> Iterator[None]:
    """Turn the casts to float32 inside transformers, and in `more` modules, into float64.

    They sit in norms, rotary angles, softmax, relative positions and losses. Models must be read inside, too.
    """
    narrow = torch.Tensor.float
    try:
        for module in (*DOWNCASTING, *more):
            module.torch = Wide()
        torch.Tensor.float = torch.Tensor.double
        yield
    finally:
        torch.Tensor.float = narrow
        for module in (*DOWNCASTING, *more):
            module.torch = torch


class OnlyFloat64(TorchDispatchMode):
    """Fails at the first operation whose result is a narrower float, so that no cast is overlooked."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            assert not isinstance(x, torch.Tensor) or x.dtype not in (torch.float32, torch.float16, torch.bfloat16), (
                func
            )
        return out


def jitter(model: Any, rng: torch.Generator) -> None:
    """Give every parameter noise of its own size, so that no zero, one or flat attention hides a mistake."""
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            size = 0.2 if p.ndim < 2 or name.endswith(("cls_token", "position_embeddings")) else p[0].numel() ** -0.5
            p.add_(size * torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype))


def expect(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model computes: logits (or hidden), loss, and the gradient of the loss by what enters the first layer's sums.

    Without labels the loss is the sum of the output times `given["weights"]`. "grad::embeds" is by the token embeddings
    before positions (of the encoder, if there is one; "grad::decoder_embeds" of the decoder), "grad::pixels" by the image.
    """
    given = {k: v.clone() for k, v in given.items()}
    weights = given.pop("weights", None)
    inputs: dict[str, torch.Tensor] = {}
    places = ["embeds", "decoder_embeds"] if model.config.is_encoder_decoder else ["embeds"]

    def keep(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.detach().requires_grad_()
        inputs[places[len(inputs)]] = out
        return out

    if "pixel_values" in given:
        inputs["pixels"] = given["pixel_values"].requires_grad_()
        hooks = []
    else:
        tables = {id(m): m for m in (model.get_input_embeddings(), *tables_of(model))}
        hooks = [m.register_forward_hook(keep) for m in tables.values()]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with OnlyFloat64():
            out = model(**given)
            y = out.logits if "logits" in out else out.last_hidden_state
            loss = out.loss if weights is None else (y * weights).sum()
            loss.backward()
    finally:
        torch.set_default_dtype(default)
        for h in hooks:
            h.remove()
    found = {"logits" if "logits" in out else "hidden": y, "loss": loss}
    found |= {f"grad::{k}": v.grad for k, v in inputs.items()}
    assert all(v.dtype == torch.float64 for v in found.values())
    return {k: v.detach().clone().contiguous() for k, v in found.items()}


def tables_of(model: Any) -> list[Any]:
    """The token tables of an encoder-decoder's stacks, which may be modules of their own."""
    return [model.encoder.embed_tokens, model.decoder.embed_tokens] if model.config.is_encoder_decoder else []
