"""What PEFT computes with an adapter that it saved: logits, loss and gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from float64 import OnlyFloat64, as_float64
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import AuxiliaryTrainingWrapper
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]


def gradient(v: torch.Tensor) -> torch.Tensor:
    """The gradient; zeros for a trained tensor that the loss does not depend on, NaN for one that is not trained."""
    if v.grad is not None:
        return v.grad
    return torch.full(v.shape, 0.0 if v.requires_grad else torch.nan, dtype=torch.float64)


def sum_gradients(model: Any) -> None:
    """What is one weight has one gradient: PEFT's factors of a tied head are parameters of their own over the table's numbers."""
    table, head = model.get_base_model().get_input_embeddings(), model.get_base_model().lm_head
    pairs = (table.lora_embedding_B, head.lora_A), (table.lora_embedding_A, head.lora_B)
    for a, b in ((one["default"], other["default"].weight) for one, other in pairs):
        if a.data_ptr() != b.data_ptr():
            continue  # they began apart
        total = a.grad + b.grad.T
        a.grad, b.grad = total, total.T.contiguous()


def expected(
    base: Callable[[], Any], folder: Path, given: Mapping[str, torch.Tensor], downcasting: Collection[Any],
    config: Any = None, remade: str | None = "-", task_loss: bool = False,
) -> Tensors:  # fmt: skip
    """Inputs, logits, loss and gradients under the file's keys, from the adapter in `folder` on the base in float64.

    `downcasting` are modules of PEFT that cast to float32, `remade` the end of keys whose tensors PEFT makes others of when it
    reads (None: it is not looked at whether it does); `task_loss`: the loss without the adapter's own penalty.
    """
    with as_float64(*downcasting):
        torch.manual_seed(1)  # reading draws an initial value that the file then replaces
        made, config = base(), config or PeftConfig.from_pretrained(folder)
        prompt = config.is_prompt_learning
        model = PeftModel.from_pretrained(made, folder, is_trainable=not prompt, config=config).double().eval()
        saved = load_file(folder / "adapter_model.safetensors")
        read = model.state_dict() | get_peft_model_state_dict(model)
        if remade is not None:
            saved = {k: v for k, v in saved.items() if not k.endswith(remade)}
        for k, v in saved.items() if remade is not None else ():
            assert torch.equal(read[k], v.double() if v.is_floating_point() else v), f"PEFT did not read {k}"
        if prompt:  # projections are folded on saving, and only the inference mode reads the folded prompt
            encoder = model.prompt_encoder["default"]
            wrapped = (m for m in model.modules() if isinstance(m, AuxiliaryTrainingWrapper))
            for p in [*encoder.parameters(), *(p for m in wrapped for p in m.parameters())]:
                p.requires_grad_(True)
        torch.set_default_dtype(torch.float64)  # LoHa and FourierFT make constants of it in their forward
        try:
            with OnlyFloat64():
                out = model(**given)
                loss = model.base_model.model(**given).loss if task_loss else out.loss
                loss.backward()
        finally:
            torch.set_default_dtype(torch.float32)
    assert out.logits.dtype == loss.dtype == torch.float64
    if getattr(config, "target_modules_to_tie", None):
        sum_gradients(model)
    grads = {k: gradient(v) for k, v in model.state_dict(keep_vars=True).items()}
    trained = get_peft_model_state_dict(model, grads, save_embedding_layers=False)  # the names of the file
    trained |= {k: grads[k] for k in saved if k in grads}
    if prompt:
        own = dict(encoder.named_parameters())
        trained |= {k: p.grad for k, p in own.items()}
        parts = [p.grad * (k != "frozen_embedding") for k, p in own.items() if k.endswith("_embedding")]
        trained["prompt_embeddings"] = torch.cat(parts) if parts else encoder.embedding.weight.grad
    wants = {
        k: trained[k]
        for k, v in saved.items()
        if v.is_floating_point() and k in trained and not trained[k].isnan().any()
    }
    assert wants and any(g.any() for g in wants.values()), "nothing is trained"
    for k, g in wants.items():
        assert g.shape == saved[k].shape and g.dtype == torch.float64, k
    found = dict(given) | dict(logits=out.logits, loss=loss) | {f"grad::{k}": g for k, g in wants.items()}
    return {k: v.detach().clone().contiguous() for k, v in found.items()}
