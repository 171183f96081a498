"""GLoRA. PEFT has it on plain linears alone: GPT-2 has none."""

import peft


def cases(on):
    qv, vector = ["q_proj", "v_proj"], dict(config_A_B="vector", config_C="vector", config_D_E="vector")
    none = dict(config_C="none", config_D_E="none")
    return [
        on.llama("glora", peft.GloraConfig, "left", r=2, target_modules=["q_proj", "down_proj"]),
        on.llama("glora-vector", peft.GloraConfig, target_modules=qv, **vector),
        on.llama("glora-constant", peft.GloraConfig, target_modules=qv, config_A_B="constant", config_C="none"),
        on.llama("glora-bias", peft.GloraConfig, r=2, target_modules=qv, config_A_B="none", config_D_E="none"),
        on.llama("glora-weight", peft.GloraConfig, r=2, target_modules=["k_proj", "up_proj"], **none),
        on.bert_cls("glora-bert", peft.GloraConfig, r=2, target_modules=["query", "value"], config_D_E="vector"),
        on.t5("glora-t5", peft.GloraConfig, r=2, target_modules=["q", "wo"]),  # without biases
        on.vit("glora-vit", peft.GloraConfig, r=2, target_modules=["q_proj", "v_proj"], config_C="vector"),
    ]
