"""Super-Tuning."""

import peft
from peft.tuners.supertuning import layer

DOWNCASTING = (layer,)


def cases(on):
    super_, qv = peft.SupertuningConfig, ["q_proj", "v_proj"]
    return [
        on.llama("supertuning", super_, "left", sparsity=0.9, target_modules=qv),
        on.llama("supertuning-supra", super_, sparsity=0.95, select_top=False, r=3, lora_alpha=5, target_modules=["k_proj", "down_proj"]),
        on.llama("supertuning-unsaved", super_, sparsity=0.93, r=2, save_precomputed_indices=False, target_modules=qv),
        on.bert_cls("supertuning-bert-cls", super_, sparsity=0.9, target_modules=["query", "output.dense"]),
        on.t5("supertuning-t5", super_, sparsity=0.9, r=2, target_modules=["q", "wo"]),
        on.vit("supertuning-vit", super_, sparsity=0.9, r=2, target_modules=["q_proj", "fc2"]),
    ]  # fmt: skip
