"""GraLoRA."""

import peft


def cases(on):
    def gralora(base, name, *targets, padding="none", **options):
        return base(name, peft.GraloraConfig, padding, alpha=5, target_modules=[*targets], **options)

    return [
        gralora(on.llama, "gralora", "q_proj", "v_proj", "down_proj", padding="left", r=4, gralora_k=2),
        gralora(on.llama, "gralora-hybrid", "k_proj", "up_proj", r=4, gralora_k=4, hybrid_r=3),
        gralora(on.gpt2, "gralora", "c_attn", r=4, gralora_k=4, fan_in_fan_out=True),
        gralora(on.bert_cls, "gralora", "query", "value", padding="right", r=5, gralora_k=5),
        gralora(on.t5, "gralora", "q", "wi", padding="right", r=4, gralora_k=2, hybrid_r=2),
        gralora(on.vit, "gralora", "q_proj", "v_proj", r=3, gralora_k=3),
    ]
