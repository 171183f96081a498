"""MonteCLoRA."""

import peft


def cases(on):
    own = dict(monteclora_config=peft.MontecloraConfig(num_samples=4, buffer_size=2), r=3, lora_alpha=5)
    entropy = peft.MontecloraConfig(
        num_samples=1, use_entropy=True, sample_scaler=0.5, kl_loss_weight=0.25, dirichlet_prior=2.0, buffer_size=1
    )
    return [
        on.llama("monteclora", peft.LoraConfig, "left", target_modules=["q_proj", "down_proj"], **own),
        on.llama(
            "monteclora-entropy", peft.LoraConfig, target_modules=["k_proj", "v_proj"], use_rslora=True, lora_bias=True,
            rank_pattern={"v_proj": 5}, **own | dict(monteclora_config=entropy),
        ),
        on.gpt2("monteclora", peft.LoraConfig, target_modules=["c_attn"], fan_in_fan_out=True, **own),
        on.bert_cls("monteclora", peft.LoraConfig, target_modules=["query", "value"], **own),
        on.t5("monteclora", peft.LoraConfig, target_modules=["q", "wo"], **own),
        on.vit("monteclora", peft.LoraConfig, target_modules=["q_proj", "v_proj"], **own),
    ]  # fmt: skip
