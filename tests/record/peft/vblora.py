"""VB-LoRA, whose logits PEFT makes of saved shares in float32: here in float64."""

import peft
import torch
from peft.tuners.vblora.model import VBLoRAModel

SHIPPED = VBLoRAModel._remap_adapter_state_dict_for_load.__func__


def _in_float64(cls, model, config, adapter_name, state_dict):
    wide = {k: v.double() if v.is_floating_point() else v for k, v in state_dict.items()}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return SHIPPED(cls, model, config, adapter_name, wide)
    finally:
        torch.set_default_dtype(before)


VBLoRAModel._remap_adapter_state_dict_for_load = classmethod(_in_float64)

Q_V = ["q_proj", "v_proj"]


def cases(on):
    chosen, shares = dict(save_only_topk_weights=True), dict(remade="_topk_weights")
    # tables and linears of 24, 12 and 20; what lies between the largest logits is more than the noise of training
    made = [
        on.llama("vblora", peft.VBLoRAConfig, "left", r=3, num_vectors=7, vector_length=4, topk=3, target_modules=["q_proj", "v_proj", "down_proj"]),
        on.llama("vblora-topk-1", peft.VBLoRAConfig, r=2, num_vectors=5, vector_length=6, topk=1, target_modules=Q_V),
        on.llama("vblora-all", peft.VBLoRAConfig, r=2, num_vectors=5, vector_length=12, topk=5, target_modules=Q_V),
        on.gpt2("vblora", peft.VBLoRAConfig, r=2, num_vectors=6, vector_length=5, target_modules=["c_attn"], fan_in_fan_out=True),
        on.bert_cls("vblora", peft.VBLoRAConfig, r=2, num_vectors=6, vector_length=4, target_modules=["query", "value"]),
        on.t5("vblora", peft.VBLoRAConfig, r=2, num_vectors=6, vector_length=4, target_modules=["q", "v"]),
        on.vit("vblora", peft.VBLoRAConfig, r=2, num_vectors=6, vector_length=3, target_modules=Q_V),
        on.llama("vblora-chosen", peft.VBLoRAConfig, "left", shares, r=2, num_vectors=7, vector_length=4, topk=3, target_modules=Q_V, **chosen),
        on.llama("vblora-chosen-1", peft.VBLoRAConfig, case=shares, r=2, num_vectors=5, vector_length=6, topk=1, target_modules=Q_V, **chosen),
        on.gpt2("vblora-chosen-1", peft.VBLoRAConfig, case=shares, r=3, num_vectors=6, vector_length=5, topk=1, target_modules=["c_attn"], fan_in_fan_out=True, **chosen),
        on.t5("vblora-chosen", peft.VBLoRAConfig, case=shares, r=2, num_vectors=260, vector_length=2, topk=2, target_modules=["q", "wi"], **chosen),
    ]  # fmt: skip
    return made
