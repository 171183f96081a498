"""VB-LoRA."""

import peft

Q_V = ["q_proj", "v_proj"]


def cases(on):
    # tables and linears of 24, 12 and 20; what lies between the largest logits is more than the noise of training
    made = [
        on.llama("vblora", peft.VBLoRAConfig, "left", r=3, num_vectors=7, vector_length=4, topk=3, target_modules=["q_proj", "v_proj", "down_proj"]),
        on.llama("vblora-topk-1", peft.VBLoRAConfig, r=2, num_vectors=5, vector_length=6, topk=1, target_modules=Q_V),
        on.llama("vblora-all", peft.VBLoRAConfig, r=2, num_vectors=5, vector_length=12, topk=5, target_modules=Q_V),
        on.gpt2("vblora", peft.VBLoRAConfig, r=2, num_vectors=6, vector_length=5, target_modules=["c_attn"], fan_in_fan_out=True),
        on.bert_cls("vblora", peft.VBLoRAConfig, r=2, num_vectors=6, vector_length=4, target_modules=["query", "value"]),
        on.t5("vblora", peft.VBLoRAConfig, r=2, num_vectors=6, vector_length=4, target_modules=["q", "v"]),
        on.vit("vblora", peft.VBLoRAConfig, r=2, num_vectors=6, vector_length=3, target_modules=Q_V),
    ]  # fmt: skip
    return made
