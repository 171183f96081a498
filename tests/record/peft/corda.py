"""CorDA, as PEFT converts it: the base that it leaves behind is in no file."""

import dataclasses
import sys
import types

import peft
import torch

if "attr" not in sys.modules:  # PEFT takes one name of it, and does not say that it needs it
    sys.modules["attr"] = types.ModuleType("attr")
    sys.modules["attr"].dataclass = dataclasses.dataclass
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda


def measured(model, case):
    """One text after the other: PEFT measures no more than one at a time."""
    given = {k: v for k, v in case.inputs.items() if k in ("input_ids", "pixel_values")}
    labels = dict(decoder_input_ids=torch.tensor([[0, 5, 9, 7]])) if case.base == "t5" else {}

    def run():
        for i in range(2):
            model(**{k: v[i : i + 1] for k, v in given.items()}, **labels)

    preprocess_corda(model, case.config, run)


def cases(on):
    def corda(base, name, mode, **options):
        told = dict(init_lora_weights="corda", corda_config=CordaConfig(corda_method=mode))
        return base(
            name,
            peft.LoraConfig,
            case=dict(before=measured, converted=True),
            **told,
            **dict(r=3, lora_alpha=5) | options,
        )

    return [
        corda(
            on.llama, "corda-ipm-converted", "ipm", target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 2}
        ),
        corda(on.gpt2, "corda-kpm-converted", "kpm", target_modules=["c_attn"], fan_in_fan_out=True, use_rslora=True),
        corda(on.t5, "corda-kpm-converted", "kpm", target_modules=["q", "wo"]),
        corda(on.vit, "corda-ipm-converted", "ipm", target_modules=["q_proj", "fc2"]),
    ]
