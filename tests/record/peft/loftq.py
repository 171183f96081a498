"""LoftQ, which PEFT quantises on an accelerator alone: here on the processor, in float32, as it does. Bases of widths of which

bitsandbytes has the values right there.
"""

import bitsandbytes as bnb
import peft
import torch
from peft.tuners.lora import layer

SHIPPED, SINGLE = layer.loftq_init, torch.Tensor.float


def here(to):
    """`to`, but what goes to an accelerator stays."""

    def moved(self, *args, **options):
        args = tuple("cpu" if a == "cuda" else a for a in args)
        return to(self, *args, **{k: "cpu" if v == "cuda" else v for k, v in options.items()})

    return moved


def loftq_init(weight, **options):
    kept = torch.Tensor.float, torch.Tensor.to, bnb.nn.Params4bit.to
    torch.Tensor.float, torch.Tensor.to, bnb.nn.Params4bit.to = SINGLE, here(kept[1]), here(kept[2])
    try:
        return SHIPPED(weight, **options)
    finally:
        torch.Tensor.float, torch.Tensor.to, bnb.nn.Params4bit.to = kept


layer.loftq_init = loftq_init


def cases(on):
    def loftq(base, name, bits, rounds, **options):
        told = peft.LoftQConfig(loftq_bits=bits, loftq_iter=rounds)
        return base(
            name, peft.LoraConfig, init_lora_weights="loftq", loftq_config=told, **dict(r=3, lora_alpha=5) | options
        )

    return [
        loftq(on.llama, "loftq", 4, 1, target_modules=["q_proj", "down_proj"]),
        loftq(on.llama, "loftq-rounds", 4, 5, target_modules=["k_proj", "up_proj"], rank_pattern={"k_proj": 2}, use_rslora=True),
        loftq(on.llama, "loftq-eight", 8, 1, target_modules="all-linear"),
        loftq(on.bert_cls, "loftq-eight-rounds", 8, 3, target_modules=["query", "output.dense"], alpha_pattern={"query": 7}),
        loftq(on.t5, "loftq-eight", 8, 2, target_modules=["q", "wo"]),
    ]  # fmt: skip
