"""OSF, beyond the case on Llama. Its ranks are whole numbers, shares of the smaller side, or half of that."""

import peft


def cases(on):
    osf = peft.OSFConfig
    return [
        on.llama("osf-half", osf, "left", target_modules=["q_proj", "v_proj"]),
        on.llama("osf-pattern", osf, effective_rank=0.3, target_modules=["q_proj", "v_proj", "up_proj"],
                 rank_pattern={"up": 0.85, r"1\.self_attn\.(q|k)": 7}),
        on.bert_cls("osf", osf, effective_rank=0.75, target_modules=["query", "intermediate.dense"]),
        on.t5("osf", osf, effective_rank=9, target_modules=["q", "wo"], rank_pattern={"encoder": 0.5}),
        on.vit("osf", osf, effective_rank=5, target_modules=["q_proj", "fc1"]),
    ]  # fmt: skip
