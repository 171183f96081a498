"""Prompts and prefixes by other starts, in one stack, and in tasks that PEFT has."""

import peft
import transformers as tf


def cases(on):
    prompt, encoder, prefix = peft.PromptTuningConfig, peft.PromptEncoderConfig, peft.PrefixTuningConfig
    tokens = on.llama(
        "prefix-tuning-token-cls", prefix, num_virtual_tokens=3, case=dict(cls=tf.LlamaForTokenClassification)
    )
    tokens.config.task_type = "TOKEN_CLS"
    return [
        tokens,
        on.llama("prompt-tuning-vocab", prompt, "left", num_virtual_tokens=3, prompt_tuning_init="SAMPLE_VOCAB"),
        on.gpt2("prompt-tuning-left-gpt2", prompt, "left", num_virtual_tokens=3),
        on.t5("prompt-tuning-one-stack", prompt, num_virtual_tokens=3, num_transformer_submodules=1),
        on.t5(
            "p-tuning-t5", encoder, num_virtual_tokens=3, encoder_reparameterization_type="LSTM", encoder_hidden_size=6
        ),
        on.llama_cls("p-tuning", encoder, num_virtual_tokens=3, encoder_hidden_size=6),
        on.bert_cls("p-tuning-bert", encoder, num_virtual_tokens=3, encoder_hidden_size=6),
        on.gpt2("prefix-tuning-left-gpt2", prefix, "left", num_virtual_tokens=3),
        on.llama("prompt-tuning-norms", prompt, num_virtual_tokens=2, modules_to_save=["post_attention_layernorm"]),
        on.llama("prefix-tuning-zero", prefix, num_virtual_tokens=3, init_weights="zero"),
    ]
