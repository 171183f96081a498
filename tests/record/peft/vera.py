"""VeRA, beyond the cases on Llama."""

import peft


def cases(on):
    vera, loud = peft.VeraConfig, dict(size=0.8)
    return [
        on.gpt2(
            "vera", vera, r=4, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True, bias="vera_only", case=loud
        ),
        on.bert_cls("vera", vera, r=4, target_modules=["query", "intermediate.dense"], d_initial=0.4, case=loud),
        on.t5("vera", vera, r=4, target_modules=["q", "wo"], save_projection=False, projection_prng_key=3, case=loud),
        on.vit("vera", vera, r=4, target_modules=["q_proj", "fc1"], case=loud),
    ]
