"""AdaLoRA, beyond the cases on Llama and BERT."""

import peft


def cases(on):
    ada = peft.AdaLoraConfig
    return [
        on.gpt2("adalora-gpt2", ada, init_r=4, target_r=2, total_step=9, lora_alpha=5, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
        on.t5("adalora-t5", ada, init_r=3, target_r=2, total_step=9, lora_alpha=5, target_modules=["q", "wo"], orth_reg_weight=0.9),
        on.llama("adalora-replicated", ada, init_r=3, target_r=2, total_step=9, lora_alpha=5, target_modules=["o_proj"], layer_replication=[[0, 2], [1, 2]]),
        on.vit("adalora-vit", ada, init_r=3, target_r=2, total_step=9, lora_alpha=5, target_modules=["q_proj", "fc1"]),
    ]  # fmt: skip
