"""FRoD. Its bases are decomposed in float32 as they were when they were saved; what is made of them is not rounded."""

import peft
from peft.tuners.frod import layer

DOWNCASTING = (layer,)


def cases(on):
    frod = peft.FrodConfig
    return [
        on.llama("frod", frod, sparse_rate=0.05, target_modules=["up_proj", "down_proj"]),
        on.llama("frod-regularized", frod, sparse_rate=0.3, regularization_alpha=0.5, projection_prng_key=3, target_modules=["down_proj", "o_proj"]),
        on.gpt2("frod-gpt2", frod, sparse_rate=0.02, fan_in_fan_out=True, target_modules=["c_attn", "mlp.c_proj"]),
        on.bert_cls("frod-bert", frod, sparse_rate=0.04, target_modules=["query", "attention.output.dense", "intermediate.dense"]),
        on.t5("frod-t5", frod, sparse_rate=0.06, target_modules=["q", "wi"]),  # V is one for both stacks
        on.vit("frod-vit", frod, sparse_rate=0.03, target_modules=["fc1"]),
    ]  # fmt: skip
