"""KaSA."""

import peft
from peft.tuners.lora import variants

DOWNCASTING = (variants,)


def cases(on):
    own = dict(kasa_config=peft.KasaConfig(), r=3, lora_alpha=5)
    return [
        on.llama("kasa", peft.LoraConfig, "left", target_modules=["q_proj", "down_proj"], **own),
        on.llama(
            "kasa-bias", peft.LoraConfig, target_modules=["k_proj", "v_proj"], use_rslora=True, lora_bias=True, rank_pattern={"v_proj": 5},
            alpha_pattern={"k_proj": 7}, **own,
        ),
        on.bert_cls("kasa", peft.LoraConfig, target_modules=["query", "value"], **own),
        on.t5("kasa", peft.LoraConfig, target_modules=["q", "wo"], **own),
        on.vit("kasa", peft.LoraConfig, target_modules=["q_proj", "v_proj"], **own),
    ]  # fmt: skip
