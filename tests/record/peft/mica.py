"""MiCA."""

import peft


def cases(on):
    def mica(base, name="mica", **options):
        return base(name, peft.LoraConfig, init_lora_weights="mica", **dict(r=3, lora_alpha=5) | options)

    return [
        mica(on.llama, target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 7}),
        mica(on.llama, "mica-embedding", target_modules=["embed_tokens", "v_proj"], use_rslora=True),
        mica(on.gpt2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
        mica(on.bert_cls, target_modules=["query", "value"]),
        mica(on.t5, target_modules=["q", "wo"]),
        mica(on.vit, target_modules=["q_proj", "v_proj"]),
    ]
