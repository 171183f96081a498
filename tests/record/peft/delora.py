"""DeLoRA."""

import peft


def cases(on):
    qv = ["q_proj", "v_proj"]
    patterns = dict(rank_pattern={"k_proj": 2}, lambda_pattern={"up_proj": 4, "0.self_attn.q_proj": 9})
    return [
        on.llama("delora", peft.DeloraConfig, "left", r=3, target_modules=[*qv, "down_proj"]),
        on.llama("delora-pattern", peft.DeloraConfig, r=4, delora_lambda=6, target_modules=["q_proj", "k_proj", "up_proj"], **patterns),
        on.bert_cls("delora", peft.DeloraConfig, r=3, target_modules=["query", "value"]),
        on.t5("delora", peft.DeloraConfig, r=3, target_modules=["q", "wi"]),
        on.vit("delora", peft.DeloraConfig, r=3, target_modules=qv),
    ]  # fmt: skip
