"""Uni-LoRA."""

import peft
from peft.tuners.unilora import model

DOWNCASTING = (model,)


def cases(on):
    wide, large = ["q_proj", "v_proj", "down_proj"], dict(size=0.8)
    return [
        on.llama("unilora", peft.UniLoraConfig, "left", large, r=3, theta_d_length=50, target_modules=wide, save_indices=True),
        on.llama("unilora-unsaved", peft.UniLoraConfig, "none", large, r=2, theta_d_length=41, proj_seed=7, target_modules=wide),
        on.llama("unilora-long", peft.UniLoraConfig, "none", large, r=1, theta_d_length=300, target_modules=["k_proj", "o_proj"], layers_to_transform=[1]),
        on.gpt2("unilora", peft.UniLoraConfig, "none", large, r=2, theta_d_length=30, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
        on.bert_cls("unilora", peft.UniLoraConfig, "right", large, r=2, theta_d_length=30, target_modules=["query", "value"]),
        on.t5("unilora", peft.UniLoraConfig, "right", large, r=2, theta_d_length=30, target_modules=["q", "v", "wo"]),
        on.vit("unilora", peft.UniLoraConfig, "none", large, r=2, theta_d_length=30, target_modules=["q_proj", "v_proj", "fc2"]),
    ]  # fmt: skip
