"""HiRA."""

import peft


def cases(on):
    qv = ["q_proj", "v_proj"]
    return [
        on.llama("hira", peft.HiraConfig, "left", r=3, target_modules=[*qv, "down_proj"]),
        on.llama("hira-embedding", peft.HiraConfig, r=2, init_weights="gaussian", target_modules=["embed_tokens", "k_proj"]),
        on.gpt2("hira", peft.HiraConfig, r=3, target_modules=["c_attn"], fan_in_fan_out=True),
        on.bert_cls("hira", peft.HiraConfig, r=3, target_modules=["query", "value"]),
        on.t5("hira", peft.HiraConfig, r=3, target_modules=["q", "wi"]),
        on.vit("hira", peft.HiraConfig, r=3, target_modules=qv),
    ]  # fmt: skip
