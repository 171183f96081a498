"""ShadowPEFT. The loss is the task's alone: auxiliary_loss_weight is 0, which is no part of the arrays' work."""

import peft


def cases(on):
    def llama(name, padding="none", **fields):
        return on.llama(name, peft.ShadowConfig, padding, auxiliary_loss_weight=0.0, **fields)

    return [
        llama("shadow", "left", r=3, shadow_alpha=0.7),
        llama(
            "shadow-deep",
            r=2,
            update_hidden_size=5,
            shadow_num_hidden_layers=2,
            shadow_intermediate_size=9,
            shadow_alpha=0.5,
        ),
        llama("shadow-one", r=3, shadow_alpha=0.7, target_modules=["model.layers.1"]),
    ]
