"""Adaption prompts, beyond the cases on Llama and GPT-2: where PEFT has them, and of classifiers."""

import peft


def cases(on):
    prompt = peft.AdaptionPromptConfig
    return [
        on.mistral("adaption-prompt", prompt, adapter_len=3, adapter_layers=2),
        on.llama_cls("adaption-prompt", prompt, adapter_len=2, adapter_layers=1),
        on.gpt2("adaption-prompt-last", prompt, "left", adapter_len=5, adapter_layers=1),
    ]
