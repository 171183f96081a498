"""CPT."""

import peft
from peft.tuners.cpt import model

DOWNCASTING = (model,)


def cases(on):
    """Of two examples and of three; in the last the loss counts the labels of the nearer ones more."""
    two = dict(
        cpt_token_ids=[5, 9, 3, 17, 30, 8, 11, 4], cpt_mask=[1] * 8, cpt_tokens_type_mask=[1, 2, 3, 4, 5, 6, 7, 8]
    )
    three = dict(cpt_token_ids=[4, 9, 17, 30, 8, 0, 11], cpt_mask=[1] * 7, cpt_tokens_type_mask=[4, 6, 8, 8, 10, 0, 12])
    decay = dict(opt_weighted_loss_type="decay", opt_loss_decay_factor=0.7)
    eps = dict(opt_projection_epsilon=5.0, opt_projection_format_epsilon=3.0)
    return [
        on.llama("cpt", peft.CPTConfig, "left", **two),
        on.llama("cpt-decay", peft.CPTConfig, **three, **decay, **eps),
        on.gpt2("cpt-gpt2", peft.CPTConfig, **two, **decay, **eps),
        on.mistral("cpt", peft.CPTConfig, "left", **three, opt_weighted_loss_type="none"),
        on.llama_tied("cpt", peft.CPTConfig, **two, **decay, opt_projection_epsilon=0.7),
    ]
