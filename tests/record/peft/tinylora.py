"""TinyLoRA."""

import peft


def cases(on):
    wide, large = ["q_proj", "v_proj", "down_proj"], dict(size=0.8)
    return [
        # six matrices in groups of one, one, one and three
        on.llama("tinylora", peft.TinyLoraConfig, "left", large, r=3, u=4, weight_tying=0.4, target_modules=wide),
        # fewer than 16 random numbers for a matrix, which are exact
        on.llama("tinylora-unsaved", peft.TinyLoraConfig, "none", large, r=2, u=3, weight_tying=1.0, projection_seed=7, target_modules=wide, save_projection=False),
        on.llama("tinylora-embedding", peft.TinyLoraConfig, "none", large, r=3, u=5, target_modules=["embed_tokens", "k_proj"], init_weights="uniform"),
        on.gpt2("tinylora", peft.TinyLoraConfig, "none", large, r=2, u=5, weight_tying=0.5, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
        on.bert_cls("tinylora", peft.TinyLoraConfig, "right", large, r=2, u=3, target_modules=["query", "value"], save_projection=False),
        on.t5("tinylora", peft.TinyLoraConfig, "right", large, r=5, u=2, weight_tying=0.3, target_modules=["q", "v"]),
        on.vit("tinylora", peft.TinyLoraConfig, "none", large, r=2, u=3, target_modules=["q_proj", "fc2"], save_projection=False),
    ]  # fmt: skip
