"""LoRA's starts that are drawn: their files say which, and hold the factors as they became."""

import peft


def cases(on):
    def lora(base, name, **options):
        return base(name, peft.LoraConfig, **dict(r=4, lora_alpha=6) | options)

    fused = dict(target_modules=["c_attn"], fan_in_fan_out=True)
    return [
        lora(on.llama, "lora-gaussian", init_lora_weights="gaussian", target_modules=["q_proj", "embed_tokens"]),
        lora(on.llama, "lora-orthogonal", init_lora_weights="orthogonal", target_modules=["k_proj", "down_proj"]),
        lora(on.gpt2, "lora-orthogonal", init_lora_weights="orthogonal", **fused),
    ]
