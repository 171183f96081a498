"""PVeRA."""

import peft


def cases(on):
    wide, size = ["q_proj", "v_proj", "down_proj"], dict(size=0.8)
    return [
        on.llama("pvera", peft.PveraConfig, "left", size, r=5, target_modules=wide, projection_prng_key=7, generator_seed=1),
        on.llama("pvera-unsaved", peft.PveraConfig, "none", size, r=3, d_initial=0.5, target_modules=wide, save_projection=False),
        on.gpt2("pvera", peft.PveraConfig, "none", size, r=4, target_modules=["c_attn"], fan_in_fan_out=True),
        on.bert_cls("pvera", peft.PveraConfig, "right", size, r=4, target_modules=["query", "value"], save_projection=False),
        on.t5("pvera", peft.PveraConfig, "right", size, r=4, target_modules=["q", "wo"], save_projection=False),
        on.vit("pvera", peft.PveraConfig, "none", size, r=4, target_modules=["q_proj", "v_proj"], save_projection=False),
    ]  # fmt: skip
