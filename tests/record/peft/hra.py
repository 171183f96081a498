"""HRA."""

import peft


def cases(on):
    qv = ["q_proj", "v_proj"]
    return [
        on.llama("hra", peft.HRAConfig, "left", r=4, target_modules=[*qv, "down_proj"]),
        on.llama("hra-odd", peft.HRAConfig, r=3, target_modules=["k_proj", "up_proj"]),
        on.llama("hra-gs", peft.HRAConfig, r=3, apply_GS=True, init_weights=False, target_modules=qv),
        on.bert_cls("hra", peft.HRAConfig, r=4, target_modules=["query", "value"]),
        on.t5("hra", peft.HRAConfig, r=4, target_modules=["q", "wi"]),
        on.vit("hra", peft.HRAConfig, r=4, target_modules=qv),
    ]
