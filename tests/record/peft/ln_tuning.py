"""LN tuning, beyond the cases on Llama and BERT."""

import peft


def cases(on):
    tuning = peft.LNTuningConfig
    return [
        on.gpt2("ln-tuning", tuning, "left", target_modules=["ln_1", "ln_f"]),
        on.t5("ln-tuning", tuning, target_modules=["layer_norm", "final_layer_norm"]),
        on.vit("ln-tuning", tuning, target_modules=["layernorm_before", "layernorm"]),
        on.mistral("ln-tuning", tuning, target_modules=r".*\.1\.(input_layernorm|post_attention_layernorm)"),
    ]
