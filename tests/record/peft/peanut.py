"""PEANuT."""

import peft


def cases(on):
    qv = ["q_proj", "v_proj"]
    return [
        on.llama("peanut", peft.PeanutConfig, "left", r=4, target_modules=qv),
        on.llama("peanut-deep", peft.PeanutConfig, r=3, depth=3, act_fn="silu", scaling=0.7, target_modules=["k_proj", "down_proj"]),
        on.bert_cls("peanut-bert-cls", peft.PeanutConfig, r=3, depth=1, act_fn="gelu", target_modules=["query", "output.dense"]),
        on.t5("peanut-t5", peft.PeanutConfig, r=3, depth=1, target_modules=["q", "wo"]),
        on.vit("peanut-vit", peft.PeanutConfig, r=3, depth=2, act_fn="tanh", target_modules=["q_proj", "fc2"]),
    ]  # fmt: skip
