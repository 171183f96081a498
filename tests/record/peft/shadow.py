"""ShadowPEFT. The loss is the task's alone but where a name says otherwise."""

import peft


def cases(on):
    def llama(name, padding="none", **fields):
        return on.llama(name, peft.ShadowConfig, padding, **dict(auxiliary_loss_weight=0.0) | fields)

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
        llama("shadow-auxiliary", "left", r=3, shadow_alpha=0.7, auxiliary_loss_weight=0.4),
        llama("shadow-heads", r=3, shadow_alpha=0.7, shadow_num_attention_heads=2, auxiliary_loss_weight=0.05),
        llama(
            "shadow-narrow",
            r=3,
            shadow_alpha=0.7,
            shadow_hidden_size=10,
            shadow_num_attention_heads=6,
            auxiliary_loss_weight=0.3,
        ),
        on.mistral(
            "shadow-own", peft.ShadowConfig, r=3, shadow_alpha=0.7, share_embeddings=False, shadow_intermediate_size=9
        ),
        on.gpt2("shadow", peft.ShadowConfig, "left", r=3, shadow_alpha=0.7, auxiliary_loss_weight=0.3),
        on.gpt2(
            "shadow-narrow",
            peft.ShadowConfig,
            r=2,
            shadow_alpha=0.7,
            shadow_hidden_size=12,
            shadow_num_attention_heads=3,
            shadow_num_hidden_layers=2,
            modules_to_save=["ln_f"],
            target_modules=["transformer.h.1"],
        ),
        on.bert_cls(
            "shadow",
            peft.ShadowConfig,
            r=3,
            shadow_alpha=0.7,
            target_modules=r"bert\.encoder\.layer\.\d+",
            auxiliary_loss_weight=0.4,
        ),
        on.bert_cls(
            "shadow-own",
            peft.ShadowConfig,
            r=2,
            shadow_alpha=0.5,
            share_embeddings=False,
            shadow_num_hidden_layers=2,
            target_modules=["bert.encoder.layer.0"],
            modules_to_save=["LayerNorm"],
        ),
        on.llama_cls("shadow", peft.ShadowConfig, r=3, shadow_alpha=0.7, auxiliary_loss_weight=0.4),
    ]
