"""LoKr, beyond the cases on Llama and on patches. It knows linears alone, and not GPT-2's."""

import peft


def cases(on):
    lokr = peft.LoKrConfig
    return [
        on.bert_cls("lokr", lokr, r=1, alpha=5, decompose_both=True, target_modules=["query", "output.dense"], rank_dropout=0.2),
        on.t5("lokr", lokr, r=2, alpha=3, decompose_factor=4, target_modules=["q", "wo"], alpha_pattern={"wo": 7}),
        on.vit("lokr", lokr, r=9, decompose_factor=2, target_modules=["q_proj", "fc1"], init_weights="lycoris"),
        on.mistral("lokr", lokr, r=2, alpha=4, decompose_factor=3, rank_pattern={"up_proj": 1}, target_modules=["v_proj", "up_proj"],
                   init_weights=False),
    ]  # fmt: skip
