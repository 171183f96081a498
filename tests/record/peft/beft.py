"""BEFT."""

import peft


def cases(on):
    beft = peft.BeftConfig
    return [
        on.llama("beft", beft, "left", target_modules=["v_proj", "down_proj"]),
        on.bert_cls("beft", beft, target_modules=["value"]),
        on.t5("beft", beft, target_modules=["v"]),
        on.vit("beft", beft, target_modules=["v_proj"]),
        on.mistral("beft", beft, target_modules=["k_proj", "v_proj"]),
        on.vit_channels("beft", beft, target_modules=r".*\.1\..*(q_proj|fc2)", modules_to_save=["classifier"]),
    ]
