"""Lily."""

import peft

DOWNCASTING = ()


def cases(on):
    lily, qv = peft.LilyConfig, ["q_proj", "v_proj"]
    fc = ["query", "value"]
    return [
        on.llama("lily", lily, "right", r=3, target_modules=qv),  # the mean is over the padding too
        on.llama("lily-stride", lily, r=3, stride_A=2, num_B=3, scaling=0.7, target_modules=[*qv, "up_proj"]),
        on.llama("lily-regex", lily, r=2, stride_A=3, target_modules=r".*\.(q_proj|o_proj)"),  # one group, by shape
        on.llama("lily-layer", lily, r=2, target_modules=qv, layers_to_transform=[1]),
        on.bert_cls("lily-bert", lily, r=2, stride_A=2, target_modules=fc),
        on.t5("lily-t5", lily, r=2, stride_A=2, target_modules=["q", "wi"]),  # q of both stacks and of cross-attention
        on.vit("lily-vit", lily, r=2, target_modules=["q_proj", "v_proj"]),
    ]
