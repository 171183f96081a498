"""LoHa, beyond the cases on Llama. It knows linears alone, and not GPT-2's."""

import peft


def cases(on):
    loha = peft.LoHaConfig
    return [
        on.bert_cls(
            "loha", loha, r=3, alpha=5, target_modules=["query", "output.dense"], rank_dropout=0.2, module_dropout=0.1
        ),
        on.t5("loha", loha, r=2, alpha=3, target_modules=["q", "wo"], alpha_pattern={"wo": 7}),
        on.vit("loha", loha, r=2, target_modules=["q_proj", "fc1"], init_weights=False),
    ]
