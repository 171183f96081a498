"""VeLoRA."""

import peft


def cases(on):
    def velora(base, name="velora", **velora):
        velora = peft.VeloraConfig(**velora)
        return lambda *padding, **options: base(
            name, peft.LoraConfig, *padding, velora_config=velora, r=3, lora_alpha=5, **options
        )

    own = dict(init_type="random", num_groups=5)
    return [
        velora(on.llama)("left", target_modules=["q_proj", "down_proj"]),
        velora(on.llama, "velora-random", scale=0.5, **own)(
            target_modules=["k_proj", "v_proj"], use_rslora=True, lora_bias=True, rank_pattern={"v_proj": 5}
        ),
        velora(on.llama, "velora-once", num_groups=4, init_type="batch_average_once")(target_modules=["k_proj"]),
        velora(on.gpt2, **own)(target_modules=["c_attn"], fan_in_fan_out=True),
        velora(on.bert_cls, **own)(target_modules=["query", "value"]),
        velora(on.t5, **own)(target_modules=["q", "wo"]),
        velora(on.vit, **own)(target_modules=["q_proj", "v_proj"]),
    ]
