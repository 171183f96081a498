"""RandLoRA."""

import peft


def cases(on):
    wide, size = ["q_proj", "v_proj", "down_proj"], dict(size=0.8)  # as wide as high, flat, and upright
    return [
        on.llama("randlora", peft.RandLoraConfig, "left", size, r=5, randlora_alpha=7, target_modules=wide, projection_prng_key=3),
        on.llama("randlora-unsaved", peft.RandLoraConfig, "none", size, r=5, randlora_alpha=7, target_modules=wide, projection_prng_key=3, save_projection=False),
        on.llama("randlora-sparse", peft.RandLoraConfig, "none", size, r=7, randlora_alpha=7, target_modules=["v_proj"], sparse=True, save_projection=False),
        on.llama("randlora-very-sparse", peft.RandLoraConfig, "none", size, r=30, randlora_alpha=7, target_modules=["q_proj"], sparse=True, very_sparse=True, save_projection=False),
        on.gpt2("randlora", peft.RandLoraConfig, "none", size, r=8, randlora_alpha=7, target_modules=["c_attn"], fan_in_fan_out=True, save_projection=False),
        on.bert_cls("randlora", peft.RandLoraConfig, "right", size, r=8, randlora_alpha=7, target_modules=["query", "value"], save_projection=False),
        on.t5("randlora", peft.RandLoraConfig, "right", size, r=6, randlora_alpha=7, target_modules=["q", "wo"], save_projection=False),
        on.vit("randlora", peft.RandLoraConfig, "none", size, r=12, randlora_alpha=7, target_modules=["q_proj", "v_proj"], save_projection=False),
    ]  # fmt: skip
