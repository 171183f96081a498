"""Trainable tokens, beyond the case on Llama."""

import peft


def cases(on):
    tokens, ids = peft.TrainableTokensConfig, [3, 7, 19]
    return [
        on.llama("trainable-tokens-head", tokens, token_indices=ids, target_modules=["lm_head"]),
        on.gpt2("trainable-tokens", tokens, token_indices=ids, target_modules=["wte"]),
        on.bert_cls("trainable-tokens", tokens, token_indices=ids, target_modules=["word_embeddings"]),
        on.t5("trainable-tokens", tokens, token_indices=ids, target_modules=["shared"]),
    ]
