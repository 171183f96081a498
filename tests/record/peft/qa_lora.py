"""QA-LoRA. PEFT has it in its layer for GPTQ's linears, which is put over plain ones here: what it computes is not their affair."""

import peft
import torch
from peft.tuners.lora import model
from peft.tuners.lora.gptq import GPTQLoraLinear, dispatch_gptq


def dispatch(target, adapter_name, config, **kwargs):
    if config.use_qalora and isinstance(target, torch.nn.Linear):
        return GPTQLoraLinear(target, adapter_name, config=config, **kwargs)
    return dispatch_gptq(target, adapter_name, config, **kwargs)


model.dispatch_gptq = dispatch


def cases(on):
    def qa(base, padding, group, *targets, name="qa-lora", **more):
        own = dict(use_qalora=True, qalora_group_size=group, r=3, lora_alpha=5, target_modules=[*targets]) | more
        return base(name, peft.LoraConfig, padding, **own)

    return [
        qa(on.llama, "left", 4, "q_proj", "down_proj"),
        qa(
            on.llama, "none", 8, "k_proj", "v_proj", name="qa-lora-rslora", use_rslora=True, alpha_pattern={"k_proj": 7}
        ),
        qa(on.bert_cls, "right", 5, "query", "value"),
        qa(on.t5, "right", 4, "q", "v"),
        qa(on.vit, "none", 11, "q_proj", "v_proj"),
    ]
