"""BEFT."""

import peft


def cases(on):
    return [
        on.llama("beft", peft.BeftConfig, "left", target_modules=["v_proj", "down_proj"]),
        on.bert_cls("beft", peft.BeftConfig, target_modules=["value"]),
        on.t5("beft", peft.BeftConfig, target_modules=["v"]),
        on.vit("beft", peft.BeftConfig, target_modules=["v_proj"]),
    ]
