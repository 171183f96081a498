"""DEFT and PaRa."""

import peft
from peft.tuners.deft import layer

DOWNCASTING = (layer,)


def cases(on):
    qv = ["q_proj", "v_proj"]
    return [
        on.llama("deft", peft.DeftConfig, "left", r=3, alpha=5, target_modules=qv),
        on.llama("deft-qr", peft.DeftConfig, r=3, decomposition_method="qr", target_modules=["k_proj", "down_proj"]),
        on.llama("deft-wide", peft.DeftConfig, r=14, alpha=5, decomposition_method="qr", target_modules=["q_proj", "v_proj"]),
        on.llama("deft-para", peft.DeftConfig, r=2, para=True, target_modules=qv),
        on.llama("deft-para-qr", peft.DeftConfig, r=2, para=True, decomposition_method="qr", target_modules=qv),
        on.gpt2("deft-gpt2", peft.DeftConfig, r=3, alpha=4, decomposition_method="qr", target_modules=["c_attn"], fan_in_fan_out=True),
        on.bert_cls("deft-bert-cls", peft.DeftConfig, r=3, target_modules=["query", "output.dense"]),
        on.t5("deft-t5", peft.DeftConfig, r=3, target_modules=["q", "wo"]),
        on.vit("deft-vit", peft.DeftConfig, r=3, decomposition_method="qr", target_modules=["q_proj", "fc2"]),
    ]  # fmt: skip
