"""aLoRA: the invocations are tokens of the rows, in some rows twice, in some not at all."""

import peft


def cases(on):
    own = dict(r=3, lora_alpha=5)
    return [
        on.llama("alora", peft.LoraConfig, "left", alora_invocation_tokens=[40], target_modules=["q_proj", "v_proj", "down_proj"], **own),
        on.llama("alora-two", peft.LoraConfig, alora_invocation_tokens=[8], use_rslora=True, target_modules=["k_proj", "v_proj"], **own),
        on.llama("alora-long", peft.LoraConfig, alora_invocation_tokens=[36, 27], rank_pattern={"k_proj": 2}, alpha_pattern={"v_proj": 7},
                 target_modules=["k_proj", "v_proj"], **own),
        on.gpt2("alora", peft.LoraConfig, alora_invocation_tokens=[19], lora_bias=True, target_modules=["c_attn"], fan_in_fan_out=True, **own),
    ]  # fmt: skip
