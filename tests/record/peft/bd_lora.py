"""BD-LoRA."""

import peft


def cases(on):
    def blocks(n, a=(), b=(), strict=True):
        return peft.BdLoraConfig(target_modules_bd_a=[*a], target_modules_bd_b=[*b], nblocks=n, match_strict=strict)

    sides = dict(target_modules=["q_proj", "down_proj"], use_bdlora=blocks(4, ["down_proj"], ["q_proj"]))
    return [
        on.llama("bd-lora", peft.LoraConfig, "left", r=4, lora_alpha=5, **sides),
        on.llama(
            "bd-lora-mixed", peft.LoraConfig, r=6, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "k_proj", "v_proj"],
            use_bdlora=blocks(3, ["layers.1.self_attn.k"], ["q_proj", "0.self_attn.v"], strict=False),
        ),
        on.bert_cls("bd-lora", peft.LoraConfig, r=4, lora_alpha=5, target_modules=["query", "value"], use_bdlora=blocks(2, ["query"], ["value"])),
        on.t5("bd-lora", peft.LoraConfig, r=4, lora_alpha=5, target_modules=["q", "wo"], use_bdlora=blocks(2, ["wo"], ["Attention.q"])),
        on.vit("bd-lora", peft.LoraConfig, r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"], use_bdlora=blocks(3, ["v_proj"], ["q_proj"])),
    ]  # fmt: skip
