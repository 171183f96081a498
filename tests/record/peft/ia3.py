"""(IA)³, beyond the cases on Llama, BERT, GPT-2 and T5's decoder."""

import peft


def cases(on):
    ia3 = peft.IA3Config
    return [
        on.llama("ia3-regex", ia3, target_modules=r".*\.(v_proj|down_proj|o_proj)", feedforward_modules=r".*\.1\.(mlp\.down_proj|self_attn\.o_proj)",
                 exclude_modules=["layers.0.self_attn.o_proj"], init_ia3_weights=False),
        on.t5("ia3", ia3, target_modules=["k", "v", "wo"], feedforward_modules=["wo"]),
        on.vit("ia3", ia3, target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"]),
    ]  # fmt: skip
